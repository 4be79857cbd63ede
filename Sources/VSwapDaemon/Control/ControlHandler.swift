import NIOCore
import NIOHTTP1
import NIOPosix
import VSwapAPI

/// Serves one connection: collects a request, has it answered on a worker thread, writes the response. The
/// pipelining handler in front of it delivers the next request only after that. Runs on the event loop.
final class ControlHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  /// Bytes of a request's line and headers together, and of its body.
  static let longestHead = 64 << 10
  static let longestBody = 64 << 10
  /// How long a connection that was refused may go on sending before it is closed.
  private static let lingering = TimeAmount.seconds(1)

  private enum State {
    case idle
    case receiving(HTTPRequestHead, ByteBuffer)
    /// A worker thread is at it.
    case answering
    /// The last response has been written; what still comes in is dropped.
    case closing
  }

  private let router: ControlRouter
  private let workers: ControlWorkers
  private let connections: ControlConnections
  private let times: ControlTimes
  private var state = State.idle
  /// Closes the connection, unless its client does what it is to do next.
  private var timer: Scheduled<Void>?

  init(router: ControlRouter, workers: ControlWorkers, connections: ControlConnections, times: ControlTimes) {
    self.router = router
    self.workers = workers
    self.connections = connections
    self.times = times
  }

  func handlerAdded(context: ChannelHandlerContext) {
    allow(times.head, context)
  }

  func handlerRemoved(context: ChannelHandlerContext) {
    timer?.cancel()
  }

  /// From now on the client has so much time; nil: it is not its turn.
  private func allow(_ time: TimeAmount?, _ context: ChannelHandlerContext) {
    timer?.cancel()
    let channel = context.channel
    timer = time.map { context.eventLoop.scheduleTask(in: $0) { channel.close(promise: nil) } }
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch (state, unwrapInboundIn(data)) {
    case (.idle, .head(let head)): begin(context, head)
    case (.receiving(let head, let body), .body(let part)): append(context, head, body, part)
    case (.receiving(let head, let body), .end): answer(context, head, body)
    case (.closing, _), (.idle, _), (.receiving, .head), (.answering, _): break
    }
  }

  /// What the parser cannot make sense of comes here.
  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    guard let parserError = error as? HTTPParserError else { return context.close(promise: nil) }
    if parserError == .headerOverflow { return refuse(context, Self.headTooLarge) }
    refuse(context, ControlError(.badRequest, "this is not HTTP/1.1"))
  }

  private static let headTooLarge = ControlError(
    .tooLarge, "the request's head has more than \(longestHead) bytes")

  private func begin(_ context: ChannelHandlerContext, _ head: HTTPRequestHead) {
    let size = head.headers.reduce(head.uri.utf8.count) { $0 + $1.name.utf8.count + $1.value.utf8.count + 4 }
    guard size <= Self.longestHead else { return refuse(context, Self.headTooLarge) }
    let announced = head.headers.first(name: "content-length").flatMap { Int($0) } ?? 0
    guard announced <= Self.longestBody else { return refuseBody(context) }
    if head.headers[canonicalForm: "expect"].contains(where: { $0.lowercased() == "100-continue" }) {
      context.writeAndFlush(
        wrapOutboundOut(.head(HTTPResponseHead(version: .http1_1, status: .continue))), promise: nil)
    }
    state = .receiving(head, ByteBuffer())
    allow(times.body, context)
  }

  private func append(
    _ context: ChannelHandlerContext, _ head: HTTPRequestHead, _ body: ByteBuffer, _ part: ByteBuffer
  ) {
    guard body.readableBytes + part.readableBytes <= Self.longestBody else { return refuseBody(context) }
    state = .idle  // gives up its reference to the buffer, which would be copied otherwise
    var body = body
    body.writeImmutableBuffer(part)
    state = .receiving(head, body)
  }

  private func answer(_ context: ChannelHandlerContext, _ head: HTTPRequestHead, _ body: ByteBuffer) {
    state = .answering
    allow(nil, context)
    connections.set(context.channel, answering: true)
    let request = ControlRequest(method: head.method, uri: head.uri, body: body)
    let keepAlive = head.isKeepAlive
    let bound = NIOLoopBound((handler: self, context: context), eventLoop: context.eventLoop)
    let stream = LineStream(channel: context.channel, keepAlive: keepAlive)
    workers.run(isQuick: router.isQuick(request), on: context.eventLoop) { [router] in
      router.respond(to: request, stream: stream)
    }.whenComplete { result in
      let (handler, context) = bound.value
      guard context.channel.isActive else { return }
      switch result {
      case .success(let response?):
        handler.write(context, response, keepAlive: keepAlive, hasBody: request.method != .HEAD)
      case .success(nil):
        handler.end(context, keepAlive: keepAlive)
      case .failure:
        let error = ControlError(.unavailable, "the daemon is leaving")
        handler.write(context, ControlRouter.response(for: error), keepAlive: false, hasBody: true)
      }
    }
  }

  private func refuseBody(_ context: ChannelHandlerContext) {
    refuse(context, ControlError(.tooLarge, "the request's body has more than \(Self.longestBody) bytes"))
  }

  /// Answers before the request is complete. The connection cannot be used after that.
  private func refuse(_ context: ChannelHandlerContext, _ error: ControlError) {
    switch state {
    case .idle, .receiving:
      write(context, ControlRouter.response(for: error), keepAlive: false, hasBody: true)
    case .answering: context.close(promise: nil)
    case .closing: break
    }
  }

  private func write(
    _ context: ChannelHandlerContext, _ response: ControlResponse, keepAlive: Bool, hasBody: Bool
  ) {
    var headers = HTTPHeaders([
      ("Content-Type", response.contentType),
      ("Content-Length", String(response.body.readableBytes)),
    ])
    if let allow = response.allow { headers.add(name: "Allow", value: allow) }
    if !keepAlive { headers.add(name: "Connection", value: "close") }
    let head = HTTPResponseHead(version: .http1_1, status: response.status, headers: headers)
    context.write(wrapOutboundOut(.head(head)), promise: nil)
    connections.set(context.channel, answering: false)
    allow(times.response, context)
    guard hasBody else { return end(context, keepAlive: keepAlive) }
    // The next request is looked at when this response has been taken, or a client that reads nothing would fill the memory.
    state = keepAlive ? .answering : .closing
    let bound = NIOLoopBound((handler: self, context: context), eventLoop: context.eventLoop)
    context.writeAndFlush(wrapOutboundOut(.body(.byteBuffer(response.body)))).whenSuccess {
      let (handler, context) = bound.value
      handler.end(context, keepAlive: keepAlive)
    }
  }

  /// Ends a response, whose head and body have been taken.
  private func end(_ context: ChannelHandlerContext, keepAlive: Bool) {
    state = keepAlive ? .idle : .closing
    connections.set(context.channel, answering: false)
    allow(times.head, context)
    context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
    if !keepAlive { closeGently(context) }
  }

  /// Ends the sending side and gives the peer a moment to read: closing while it still sends would cost it
  /// the response.
  private func closeGently(_ context: ChannelHandlerContext) {
    context.close(mode: .output, promise: nil)
    let channel = context.channel
    context.eventLoop.scheduleTask(in: Self.lingering) { channel.close(promise: nil) }
  }
}
