import ArgumentParser
import CUserfault
import Glibc
import VSwapAPI

/// `vswapctl swapoff`.
struct SwapoffCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "swapoff",
    abstract: "Retire a swap area while everything runs.",
    usage: """
      vswapctl swapoff PATH [--json] [--dry-run]
      vswapctl swapoff --all [--json] [--dry-run]
      """,
    discussion: """
      What is in it goes back into the programs, into the pool, or into other areas. Refused, with figures, \
      where there is no room. Ctrl-C cancels: the area stays active, unless it was retired at that very moment; \
      the last line says which. Exit status: 0, 1 if an area stays, 130 after Ctrl-C.
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: ArgumentHelp("The area's file or block device.", valueName: "path"))
  var path: String?

  @Flag(help: "Retire all areas, one after the other.")
  var all = false

  @Flag(help: "Print each result as one line of JSON.")
  var json = false

  @Flag(help: "Only say what would be done.")
  var dryRun = false

  func validate() throws {
    if path?.isEmpty == true { throw ValidationError("the path is empty") }
    guard (path == nil) == all else { throw ValidationError("give either a path or --all") }
  }

  func run() throws {
    let signals = vs_signal_descriptor()  // before NIO makes threads, which inherit what is blocked
    guard signals >= 0 else { throw CommandFailure(message: "no signalfd: \(String(cString: strerror(-signals)))") }
    let client = try connection.client()
    let report = SwapoffReport(json: json, dryRun: dryRun)
    let area = try path.map { try Self.area($0, client) }
    let request = SwapoffRequest(path: area, dryRun: dryRun)
    let paths = area.map(Self.names)
    let signal: Int32?
    do {
      signal = try client.swapoff(request, until: signals) { report.take($0) }
    } catch {
      report.endProgress()
      guard report.hasBegun, case .garbled = error else { throw client.explain(error) }
      throw CommandFailure(message: "the daemon at \(client.socketPath) went away; see `vswapctl status`")
    }
    report.endProgress()
    if let signal {
      StandardError.writeLine("vswapctl: cancelled; \(Self.outcome(client, paths))")
      throw ExitCode(128 + signal)
    }
    try report.finish()
  }

  /// What the daemon may call an area: links are followed, unless its file has been taken away. Asked before it may be.
  private static func names(_ absolute: String) -> [String] {
    guard let real = realpath(absolute, nil) else { return [absolute] }
    defer { free(real) }
    return [absolute, String(cString: real)]
  }

  /// What became of the areas: the daemon notices within a moment that nobody waits any more, and may have been through by then.
  /// nil as `paths`: all areas.
  private static func outcome(_ client: ControlClient, _ paths: [String]?) -> String {
    var settled = 0
    for _ in 0..<Self.questions {
      guard let areas = try? client.areas() else {
        return "the daemon does not say what became of it; see `vswapctl swapon --show`"
      }
      let left = areas.filter { paths?.contains($0.path) ?? true }
      // A request that is just being taken up has not begun yet.
      settled = left.contains { $0.state == "draining" } ? 0 : settled + 1
      if settled == 3 { return sentence(left.map(\.path), paths?.first) }
      usleep(20_000)
    }
    return "the daemon is still at it; see `vswapctl swapon --show`"
  }

  /// Ten seconds: as long as the daemon may be busy with a disk.
  private static let questions = 500

  private static func sentence(_ left: [String], _ path: String?) -> String {
    if left.isEmpty { return "\(path ?? "everything") had just been retired" }
    return "\(left.joined(separator: ", ")) \(left.count == 1 ? "stays" : "stay") active"
  }

  /// The path of the area that `name` means: as typed, or as the status shows it.
  private static func area(_ name: String, _ client: ControlClient) throws(CommandFailure) -> String {
    let typed = RuntimePaths.absolute(name)
    guard let meant = EscapedText.path(shown: name), meant != name else { return typed }
    do {
      let paths = try client.areas().map(\.path)
      return !paths.contains(typed) && paths.contains(meant) ? meant : typed
    } catch {
      throw client.explain(error)
    }
  }
}
