import ArgumentParser
import VSwapAPI

/// `vswapctl detach`.
struct DetachCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "detach", abstract: "Fault everything of a process back in, then let it go.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The process id.")
  var pid: Int32

  func validate() throws {
    if pid < 1 { throw ValidationError("'\(pid)' is not a process id") }
  }

  func run() throws {
    let client = try connection.client()
    do {
      try StandardOutput.write(client.detach(DetachRequest(pid: pid)).sentence)
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }
}
