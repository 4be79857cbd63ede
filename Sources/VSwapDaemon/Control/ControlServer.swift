import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization
import VSwapAPI

/// The control API: HTTP/1.1 on a unix socket that only its owner may open. One event loop thread; the calls
/// of the control plane run on a few threads of their own (`ControlWorkers`).
///
/// `start` and `stop` block and belong to one thread, which is none of these.
final class ControlServer: Sendable {
  /// Connections at a time. Twice what can wait for an answer that takes long: one more finds one to take the place of.
  static let mostConnections = 2 * ControlWorkers.mostSlow

  private let router: ControlRouter
  private let socket: ControlSocket
  private let loops = MultiThreadedEventLoopGroup(numberOfThreads: 1)
  private let workers = ControlWorkers()
  private let connections = ControlConnections(most: mostConnections)
  private let times: ControlTimes
  /// Whether the socket in the file system is this server's.
  private let isListening = Atomic(false)

  /// - Throws: ``StartupError`` when `socketPath` is too long for a socket.
  init(plane: any ControlPlane, socketPath: String, times: ControlTimes = ControlTimes()) throws {
    self.times = times
    router = ControlRouter(plane: plane)
    socket = try ControlSocket(path: socketPath)
  }

  /// Makes the socket and serves it. A stale socket of a daemon that is gone is replaced.
  ///
  /// - Throws: ``StartupError``: somebody else answers there, or the socket cannot be made. Call ``stop()``
  ///   then too.
  func start() throws {
    workers.start()
    let descriptor = try socket.listen()
    isListening.store(true, ordering: .relaxed)
    let bootstrap = ServerBootstrap(group: loops).childChannelInitializer { [self] channel in
      channel.eventLoop.makeCompletedFuture { try configure(channel) }
    }
    do {
      _ = try bootstrap.withBoundSocket(descriptor).wait()
    } catch {
      throw StartupError(message: "cannot serve \(socket.path): \(error)")
    }
  }

  /// Waits for the requests under way, closes all connections, removes the socket.
  func stop() {
    if isListening.exchange(false, ordering: .relaxed) { socket.remove() }
    workers.stop()
    try? loops.syncShutdownGracefully()
  }

  /// On the event loop.
  private func configure(_ channel: any Channel) throws {
    guard connections.add(channel) else { throw ControlError(.unavailable, "too many connections") }
    channel.closeFuture.whenComplete { [connections] _ in connections.remove(channel) }
    let pipeline = channel.pipeline.syncOperations
    try pipeline.configureHTTPServerPipeline(withErrorHandling: false)
    try pipeline.addHandler(ControlHandler(router: router, workers: workers, connections: connections, times: times))
  }
}
