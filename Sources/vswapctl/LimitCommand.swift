import ArgumentParser
import VSwapAPI

/// `vswapctl limit`.
struct LimitCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Change the memory limit of a group while it runs.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The group, as in status.")
  var group: String

  @Argument(
    help: ArgumentHelp(
      "Most resident anonymous memory, at least 4M; auto: as little as it does with; or none.", valueName: "size|auto|none")
  )
  var limit: String

  func validate() throws {
    _ = try newLimit()
  }

  func run() throws {
    let client = try connection.client()
    do {
      _ = try client.limit(LimitRequest(group: group, limit: newLimit()))
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }

  private func newLimit() throws -> MemoryLimit {
    limit == "none" ? .none : try LimitOption.parse(limit, for: "limit")
  }
}
