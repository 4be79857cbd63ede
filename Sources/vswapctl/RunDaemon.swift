import Glibc
import VSwapAPI

/// The daemon that a command attaches to: one that was there, or an embedded one.
struct RunDaemon {
  let client: ControlClient
  /// The daemon's runtime directory, absolute.
  let directory: String
  var attachSocket: String { RuntimePaths.attachSocket(in: directory) }
  /// The pool as it was before the command.
  let poolBefore: PoolStatus
  private let embedded: EmbeddedDaemon?

  /// - Throws: ``LaunchRefusal`` with 125.
  init(
    _ connection: ConnectionOptions, embedded wantsEmbedded: Bool, poolLimitBytes: Int?,
    swapAreas: [SwapSpecification]
  ) throws(LaunchRefusal) {
    if !wantsEmbedded, let path = try Self.path(connection), let status = try Self.ask(path) {
      guard poolLimitBytes == nil else {
        throw LaunchRefusal(.notAttachable, "--pool-limit is the running daemon's; use --embedded")
      }
      guard swapAreas.isEmpty else {
        throw LaunchRefusal(
          .notAttachable, "--swap is for an embedded daemon; use `vswapctl swapon` for the running one, or --embedded")
      }
      client = ControlClient(socketPath: path)
      directory = Self.directory(of: path)
      poolBefore = status.pool
      embedded = nil
    } else {
      let daemon = try EmbeddedDaemon(poolLimitBytes: poolLimitBytes, swapAreas: swapAreas)
      client = ControlClient(socketPath: RuntimePaths.controlSocket(in: daemon.directory))
      directory = daemon.directory
      poolBefore = .empty
      embedded = daemon
    }
    guard attachSocket.utf8.count <= RuntimePaths.longestSocketPath else {
      throw LaunchRefusal(.notAttachable, "\(attachSocket) is too long for a socket; use --embedded")
    }
  }

  /// Call when the command has ended, and when it could not be started.
  func release() {
    embedded?.release()
  }

  private static func path(_ connection: ConnectionOptions) throws(LaunchRefusal) -> String? {
    do {
      return try connection.path()
    } catch {
      throw LaunchRefusal(.notAttachable, error.message)
    }
  }

  /// The status of the daemon at `path`; nil if there is none.
  private static func ask(_ path: String) throws(LaunchRefusal) -> DaemonStatus? {
    let client = ControlClient(socketPath: path)
    do {
      return try client.status()
    } catch {
      if case .unreachable(let code) = error, [ENOENT, ENOTDIR, ECONNREFUSED].contains(code) { return nil }
      throw LaunchRefusal(.notAttachable, client.explain(error).message)
    }
  }

  /// Absolute: the command may change its working directory.
  private static func directory(of path: String) -> String {
    let socket = InstalledFile.absolute(path)
    return String(socket[..<(socket.lastIndex(of: "/") ?? socket.startIndex)])
  }
}

extension PoolStatus {
  /// A pool that has stored nothing yet.
  fileprivate static let empty = PoolStatus(
    objects: 0, originalBytes: 0, compressedBytes: 0, arenaBytes: 0, limitBytes: 0, state: .ok)
}
