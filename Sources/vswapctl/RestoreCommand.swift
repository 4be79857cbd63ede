import ArgumentParser
import VSwapAPI

/// `vswapctl restore`.
struct RestoreCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore",
    abstract: "Fault everything of a process or a group back in (before gdb, a core dump, a handover).")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: ArgumentHelp("A process id or a group.", valueName: "pid|group"))
  var target: String

  func run() throws {
    let client = try connection.client()
    do {
      try StandardOutput.write(client.restore(RestoreRequest(target: TargetName(target))).sentence)
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }
}

extension RestoreReply {
  /// One line for the user.
  var sentence: String {
    "restored \(pageCount(restoredPages)) (\(ByteSize.format(restoredBytes)))\n"
  }
}
