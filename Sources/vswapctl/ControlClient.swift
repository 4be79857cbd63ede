import CUserfault
import FoundationEssentials
import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import VSwapAPI

/// Asks a daemon through its control socket, one request per connection. Blocks.
struct ControlClient {
  let socketPath: String

  /// Why there is no answer.
  enum Failure: Error {
    /// connect(2) failed with this errno.
    case unreachable(Int32)
    /// Somebody listens and did not answer in time.
    case silent
    /// The daemon says no.
    case refused(ControlError)
    /// Something answers, and it is not what vswapd would say.
    case garbled(String)
  }

  /// Longest reply that is read, in bytes.
  static let longestReply = 64 << 20
  /// How long the daemon may take to accept a connection.
  private static let connectTime = TimeAmount.seconds(5)
  /// How long it may take to answer what it knows at once.
  private static let statusTime = TimeAmount.seconds(10)

  func status() throws(Failure) -> DaemonStatus {
    try decode(DaemonStatus.self, statusText())
  }

  func status(within time: TimeAmount) throws(Failure) -> DaemonStatus {
    try decode(DaemonStatus.self, exchange(.GET, "/v1/status", body: nil, within: time))
  }

  /// The status as the daemon wrote it.
  func statusText() throws(Failure) -> ByteBuffer {
    try exchange(.GET, "/v1/status", body: nil, within: Self.statusTime)
  }

  func evict(_ request: EvictRequest) throws(Failure) -> EvictReply {
    try post("/v1/evict", request)
  }

  func restore(_ request: RestoreRequest) throws(Failure) -> RestoreReply {
    try post("/v1/restore", request)
  }

  func limit(_ request: LimitRequest) throws(Failure) -> LimitReply {
    try post("/v1/limit", request)
  }

  func detach(_ request: DetachRequest) throws(Failure) -> RestoreReply {
    try post("/v1/detach", request)
  }

  func areas() throws(Failure) -> [AreaStatus] {
    try decode([AreaStatus].self, areasText())
  }

  /// The areas as the daemon wrote them.
  func areasText() throws(Failure) -> ByteBuffer {
    try exchange(.GET, "/v1/areas", body: nil, within: Self.statusTime)
  }

  func swapon(_ request: SwaponRequest) throws(Failure) -> AreaStatus {
    try post("/v1/areas", request)
  }

  /// Retires areas until that is done or a signal comes, which closes the connection and so cancels it.
  ///
  /// - Parameters:
  ///   - signals: a signalfd.
  ///   - onLine: gets each line of the reply, on another thread; never again after this has returned.
  /// - Returns: the number of the signal, or nil.
  func swapoff(
    _ request: SwapoffRequest, until signals: Int32, onLine: @escaping @Sendable (ByteBuffer) -> Void
  ) throws(Failure) -> Int32? {
    let done = vs_eventfd()
    guard done >= 0 else { throw .garbled("no event descriptor: \(Self.text(-done))") }
    defer { close(done) }  // after the loop, which rings it
    let loops = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? loops.syncShutdownGracefully() }
    let future = begin(loops, .POST, "/v1/swapoff", Self.encode(request), onLine: onLine, within: nil)
    future.whenComplete { _ in _ = vs_eventfd_signal(done) }
    if let signal = Self.wait(for: done, or: signals) { return signal }
    _ = try content(of: future)
    return nil
  }

  /// Returns the signal, or nil when the other descriptor is readable.
  private static func wait(for done: Int32, or signals: Int32) -> Int32? {
    var polled = [done, signals].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    while true {
      guard poll(&polled, nfds_t(polled.count), -1) > 0 else { continue }
      if polled[0].revents != 0 { return nil }
      let signal = vs_next_signal(signals)
      if signal > 0 { return signal }
    }
  }

  /// Takes as long as the daemon takes: gigabytes may have to come back.
  private func post<Reply: Decodable>(_ path: String, _ request: some Encodable) throws(Failure) -> Reply {
    try decode(Reply.self, exchange(.POST, path, body: Self.encode(request), within: nil))
  }

  private static func encode(_ request: some Encodable) -> ByteBuffer {
    do {
      return ByteBuffer(bytes: try JSONEncoder().encode(request))
    } catch {
      preconditionFailure("a request that JSON cannot express: \(error)")
    }
  }

  private func decode<Reply: Decodable>(_ type: Reply.Type, _ body: ByteBuffer) throws(Failure) -> Reply {
    do {
      return try JSONDecoder().decode(type, from: Data(body.readableBytesView))
    } catch let error as DecodingError {
      throw .garbled(error.explanation)
    } catch {
      throw .garbled("it is not valid JSON")
    }
  }

  private func exchange(
    _ method: HTTPMethod, _ path: String, body: ByteBuffer?, within time: TimeAmount?
  ) throws(Failure) -> ByteBuffer {
    let loops = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? loops.syncShutdownGracefully() }
    return try content(of: begin(loops, method, path, body, onLine: nil, within: time))
  }

  private func begin(
    _ loops: MultiThreadedEventLoopGroup, _ method: HTTPMethod, _ path: String, _ body: ByteBuffer?,
    onLine: (@Sendable (ByteBuffer) -> Void)?, within time: TimeAmount?
  ) -> EventLoopFuture<ExchangeHandler.Reply> {
    let promise = loops.next().makePromise(of: ExchangeHandler.Reply.self)
    promise.futureResult.eventLoop.execute { connect(loops, method, path, body, onLine, promise) }
    if let time {
      promise.futureResult.eventLoop.scheduleTask(in: time) { promise.fail(Failure.silent) }
    }
    return promise.futureResult
  }

  /// Waits for the reply. Returns the body of a success.
  private func content(of future: EventLoopFuture<ExchangeHandler.Reply>) throws(Failure) -> ByteBuffer {
    let reply: ExchangeHandler.Reply
    do {
      reply = try future.wait()
    } catch {
      throw Self.failure(error)
    }
    guard reply.status != .ok && reply.status != .created else { return reply.body }
    guard let refusal = try? JSONDecoder().decode(ErrorReply.self, from: Data(reply.body.readableBytesView))
    else {
      throw .garbled("status \(reply.status.code) without a reason")
    }
    throw .refused(refusal.error)
  }

  private func connect(
    _ loops: any EventLoopGroup, _ method: HTTPMethod, _ path: String, _ body: ByteBuffer?,
    _ onLine: (@Sendable (ByteBuffer) -> Void)?, _ promise: EventLoopPromise<ExchangeHandler.Reply>
  ) {
    ClientBootstrap(group: loops)
      .connectTimeout(Self.connectTime)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHTTPClientHandlers()
          try channel.pipeline.syncOperations.addHandler(
            ExchangeHandler(method, path, body, onLine: onLine, promise))
        }
      }
      .connect(unixDomainSocketPath: socketPath)
      .whenFailure { promise.fail($0) }
  }

  private static func failure(_ error: any Error) -> Failure {
    switch error {
    case let error as Failure: error
    case let error as IOError: .unreachable(error.errnoCode)
    case is ChannelError: .unreachable(ETIMEDOUT)
    default: .garbled("\(error)")
    }
  }
}

extension ControlClient {
  /// One line for the user.
  func explain(_ failure: Failure) -> CommandFailure {
    switch failure {
    case .unreachable(let code) where code == EACCES || code == EPERM:
      CommandFailure(
        message: "may not connect to \(socketPath) (\(Self.text(code))); ask as the daemon's user or root")
    case .unreachable(let code):
      CommandFailure(
        message: "no daemon answers at \(socketPath) (\(Self.text(code))); start one with `vswapd serve`, "
          + "use `vswapctl run --embedded`, or name an embedded one that runs with --embedded-of")
    case .silent:
      CommandFailure(message: "the daemon at \(socketPath) does not answer; see whether it is stopped")
    case .refused(let error):
      CommandFailure(message: error.message)
    case .garbled(let why):
      CommandFailure(message: "what answers at \(socketPath) is not this vswapd: \(why); check --socket")
    }
  }

  private static func text(_ code: Int32) -> String {
    String(cString: strerror(code))
  }
}
