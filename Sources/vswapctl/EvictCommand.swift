import ArgumentParser
import VSwapAPI

/// `vswapctl evict`.
struct EvictCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "evict", abstract: "Page a process or a group out now.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: ArgumentHelp("A process id or a group.", valueName: "pid|group"))
  var target: String

  @Option(help: "How much. Default: all that is evictable.")
  var size: String?

  func validate() throws {
    _ = try bytes()
  }

  func run() throws {
    let client = try connection.client()
    do {
      let reply = try client.evict(EvictRequest(target: TargetName(target), bytes: try bytes()))
      try StandardOutput.write(
        "evicted \(pageCount(reply.evictedPages)) (\(ByteSize.format(reply.evictedBytes)))\n")
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }

  private static let pageSize = 4096

  private func bytes() throws -> Int? {
    do {
      return try size.map { try ByteSize.parse($0, minimum: Self.pageSize) }
    } catch {
      throw ValidationError("--size: \(error)")
    }
  }
}
