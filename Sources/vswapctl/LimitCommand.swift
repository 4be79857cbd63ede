import ArgumentParser
import VSwapAPI

/// `vswapctl limit`.
struct LimitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Change the memory limit of a group while it runs.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The group, as in status.")
  var group: String

  @Argument(help: ArgumentHelp("Resident anonymous memory, at least 4M; or none.", valueName: "size|none"))
  var limit: String

  func validate() throws {
    _ = try limitBytes()
  }

  func run() throws {
    let client = try connection.client()
    do {
      _ = try client.limit(LimitRequest(group: group, limitBytes: limitBytes()))
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }

  private func limitBytes() throws -> Int? {
    limit == "none" ? nil : try LimitOption.parse(limit, for: "limit")
  }
}
