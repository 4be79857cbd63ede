import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization
import VSwapAPI

/// The control API: HTTP/1.1 on a unix socket that only its owner may open. One event loop thread; the calls
/// of the control plane run on a few threads of their own.
///
/// `start` and `stop` block and belong to one thread, which is none of these.
final class ControlServer: Sendable {
  /// Requests that are answered at a time.
  static let workerCount = 4
  /// Connections at a time; one more is closed at once.
  private static let mostConnections = 64
  /// A connection that is silent for so long, without a request of its own under way, is closed.
  private static let idleTime = TimeAmount.seconds(60)

  private let router: ControlRouter
  private let socket: ControlSocket
  private let loops = MultiThreadedEventLoopGroup(numberOfThreads: 1)
  private let workers = NIOThreadPool(numberOfThreads: workerCount)
  private let connections = ConnectionCount()
  /// Whether the socket in the file system is this server's.
  private let isListening = Atomic(false)

  /// - Throws: ``StartupError`` when `socketPath` is too long for a socket.
  init(plane: any ControlPlane, socketPath: String) throws {
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
    try? workers.syncShutdownGracefully()
    try? loops.syncShutdownGracefully()
  }

  /// On the event loop.
  private func configure(_ channel: any Channel) throws {
    guard connections.add(1) <= Self.mostConnections else {
      connections.add(-1)
      throw ControlError(.unavailable, "too many connections")
    }
    channel.closeFuture.whenComplete { [connections] _ in connections.add(-1) }
    let pipeline = channel.pipeline.syncOperations
    try pipeline.addHandler(IdleStateHandler(allTimeout: Self.idleTime))
    try pipeline.configureHTTPServerPipeline(withErrorHandling: false)
    try pipeline.addHandler(ControlHandler(router: router, workers: workers))
  }
}
