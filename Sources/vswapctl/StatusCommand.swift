import ArgumentParser
import Glibc
import NIOCore
import VSwapAPI

/// `vswapctl status`.
struct StatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show targets, groups and where the swapped pages are.")

  @OptionGroup var connection: ConnectionOptions

  @Flag(help: "Print what the daemon says, as one line of JSON.")
  var json = false

  @Flag(help: "Go on showing it, once a second.")
  var watch = false

  func run() throws {
    if try !connection.namesDaemon && showEmbedded() { return }
    let client = try connection.client()
    let refreshes = watch && !json && StandardOutput.isTerminal
    if refreshes { try StandardOutput.write(Self.clearScreen) }
    var isFirst = true
    repeat {
      if !isFirst { sleep(1) }
      if json {
        try StandardOutput.write(Array(try fetch(client).readableBytesView))
      } else {
        let text = StatusReport.render(try status(client))
        let separator = isFirst ? "" : "\n"
        try StandardOutput.write(refreshes ? Self.inPlace(text) : separator + text)
      }
      isFirst = false
    } while watch
  }

  /// Shows which embedded daemons there are, if there is no other one. false: there is one, or there are none.
  private func showEmbedded() throws -> Bool {
    guard !json, !watch else { return false }
    let path = try connection.path()
    if let path {
      do throws(ControlClient.Failure) {
        _ = try ControlClient(socketPath: path).status()
        return false
      } catch {
        guard case .unreachable(let code) = error, [ENOENT, ENOTDIR, ECONNREFUSED].contains(code) else { return false }
      }
    }
    let daemons = EmbeddedDaemons.list()
    guard !daemons.isEmpty else { return false }
    try StandardOutput.write(
      "No daemon serves \(path ?? "this user"). Embedded daemons; --embedded-of PID shows one:\n\n"
        + EmbeddedDaemons.report(daemons))
    return true
  }

  private func fetch(_ client: ControlClient) throws(CommandFailure) -> ByteBuffer {
    do {
      return try client.statusText()
    } catch {
      throw client.explain(error)
    }
  }

  private func status(_ client: ControlClient) throws(CommandFailure) -> DaemonStatus {
    do {
      return try client.status()
    } catch {
      throw client.explain(error)
    }
  }

  // Control sequences of ECMA-48.
  private static let clearScreen = "\u{1B}[2J"
  private static let home = "\u{1B}[H"
  private static let clearToEndOfLine = "\u{1B}[K"
  private static let clearToEndOfScreen = "\u{1B}[J"

  /// `text` over what was there before, without a flicker.
  private static func inPlace(_ text: String) -> String {
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    return home + lines.joined(separator: clearToEndOfLine + "\n") + clearToEndOfScreen
  }
}
