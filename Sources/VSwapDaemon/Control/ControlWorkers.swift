import NIOCore
import NIOPosix
import VSwapAPI

/// The threads that answer requests. What waits for nobody (status, metrics, limits) has a thread of its own, so it is answered
/// at once whatever the others wait for.
final class ControlWorkers: Sendable {
  /// Requests at a time that may take long; more of them wait for one to end.
  static let slowThreads = 4
  /// Those that are under way or wait. One more is refused.
  static let mostSlow = 32

  private let quick = NIOThreadPool(numberOfThreads: 1)
  private let slow = NIOThreadPool(numberOfThreads: slowThreads)
  private let slowRequests = RequestCount()

  func start() {
    quick.start()
    slow.start()
  }

  /// Waits for the requests under way.
  func stop() {
    try? slow.syncShutdownGracefully()
    try? quick.syncShutdownGracefully()
  }

  /// Runs `answer` on a thread. The future fails if the workers have been stopped.
  func run(
    isQuick: Bool, on loop: any EventLoop, _ answer: @escaping @Sendable () -> ControlResponse?
  ) -> EventLoopFuture<ControlResponse?> {
    guard !isQuick else { return quick.runIfActive(eventLoop: loop, answer) }
    guard slowRequests.add(1) <= Self.mostSlow else {
      slowRequests.add(-1)
      return loop.makeSucceededFuture(ControlRouter.response(for: Self.tooMany))
    }
    let future = slow.runIfActive(eventLoop: loop, answer)
    future.whenComplete { [slowRequests] _ in slowRequests.add(-1) }
    return future
  }

  private static let tooMany = ControlError(
    .unavailable, "\(mostSlow) requests are under way already; wait for one of them")
}
