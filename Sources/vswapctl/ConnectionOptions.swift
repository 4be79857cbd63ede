import ArgumentParser
import FoundationEssentials
import Glibc
import VSwapAPI

/// Which daemon a command is for.
struct ConnectionOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "The daemon's control socket. Default: /run/vswapd/control.sock for root, else "
        + "$XDG_RUNTIME_DIR/vswapd/control.sock.",
      valueName: "path"))
  var socket: String?

  @Option(
    help: ArgumentHelp(
      "The daemon that `run` started for this process, or for the program or group of this name.",
      valueName: "pid|name"))
  var embeddedOf: String?

  func validate() throws {
    if embeddedOf?.isEmpty == true { throw ValidationError("--embedded-of: the name is empty") }
    if embeddedOf != nil && socket != nil { throw ValidationError("give either --socket or --embedded-of") }
    if let socket, socket.utf8.count > RuntimePaths.longestSocketPath || socket.isEmpty {
      throw ValidationError(
        "--socket: the path of a socket has between 1 and \(RuntimePaths.longestSocketPath) bytes")
    }
  }

  /// Whether a daemon was named, so that no other one will do.
  var namesDaemon: Bool { socket != nil || embeddedOf != nil }

  /// Where the daemon should answer; nil if nothing says so.
  ///
  /// - Throws: ``CommandFailure`` where --embedded-of names none, or several.
  func path() throws(CommandFailure) -> String? {
    if let embeddedOf { return try EmbeddedDaemons.socket(of: embeddedOf) }
    let directory = RuntimePaths.defaultDirectory(
      environment: ProcessInfo.processInfo.environment, userIdentifier: geteuid())
    return socket ?? directory.map(RuntimePaths.controlSocket)
  }

  /// A client of that daemon.
  func client() throws(CommandFailure) -> ControlClient {
    guard let path = try path() else {
      throw CommandFailure(message: "XDG_RUNTIME_DIR is not set; say where the daemon is with --socket")
    }
    return ControlClient(socketPath: path)
  }
}
