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

  func validate() throws {
    if let socket, socket.utf8.count > RuntimePaths.longestSocketPath || socket.isEmpty {
      throw ValidationError(
        "--socket: the path of a socket has between 1 and \(RuntimePaths.longestSocketPath) bytes")
    }
  }

  /// Where the daemon should answer; nil if nothing says so.
  var path: String? {
    let directory = RuntimePaths.defaultDirectory(
      environment: ProcessInfo.processInfo.environment, userIdentifier: geteuid())
    return socket ?? directory.map(RuntimePaths.controlSocket)
  }

  /// A client of that daemon.
  func client() throws(CommandFailure) -> ControlClient {
    guard let path else {
      throw CommandFailure(message: "XDG_RUNTIME_DIR is not set; say where the daemon is with --socket")
    }
    return ControlClient(socketPath: path)
  }
}
