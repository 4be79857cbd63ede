import ArgumentParser
import Glibc
import VSwapAPI

/// `vswapd`.
struct DaemonCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vswapd",
    abstract: "Keeps the memory of programs within limits, and the rest of it compressed.",
    version: vswapVersion,
    subcommands: [ServeCommand.self])

  func run() throws {
    throw ValidationError("no command given")
  }

  /// Runs the command line and returns the exit status: 0, 1 when the daemon cannot start, 64 for wrong
  /// options.
  static func invoke(_ arguments: [String]) -> Int32 {
    do {
      var command = try parseAsRoot(arguments)
      try command.run()
      return EXIT_SUCCESS
    } catch let status as ExitCode {
      return status.rawValue
    } catch {
      guard exitCode(for: error) != .success else { exit(withError: error) }  // --help, --version
      let reason = message(for: error).split(separator: "\n").joined(separator: " ")
      reportError("\(reason.prefix(1).lowercased())\(reason.dropFirst()); see `vswapd serve --help`")
      return EX_USAGE
    }
  }

  /// Prints one line.
  static func reportError(_ message: String) {
    writeLine("vswapd: \(message)", to: STDERR_FILENO)
  }

  /// Writes `line` and a newline, at once. Nobody can be told if that fails.
  static func writeLine(_ line: String, to descriptor: Int32) {
    let bytes = Array("\(line)\n".utf8)
    _ = Glibc.write(descriptor, bytes, bytes.count)
  }
}
