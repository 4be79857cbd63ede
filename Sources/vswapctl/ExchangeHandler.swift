import NIOCore
import NIOHTTP1

/// Sends one request and collects the response to it, or hands it out line by line. On the event loop.
final class ExchangeHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPClientResponsePart
  typealias OutboundOut = HTTPClientRequestPart
  typealias Reply = (status: HTTPResponseStatus, body: ByteBuffer)

  private let method: HTTPMethod
  private let path: String
  private let requestBody: ByteBuffer?
  /// Gets each line of a success, with its end.
  private let onLine: ((ByteBuffer) -> Void)?
  private let promise: EventLoopPromise<Reply>
  private var reply = Reply(.ok, ByteBuffer())

  init(
    _ method: HTTPMethod, _ path: String, _ body: ByteBuffer?, onLine: ((ByteBuffer) -> Void)?,
    _ promise: EventLoopPromise<Reply>
  ) {
    self.method = method
    self.path = path
    self.requestBody = body
    self.onLine = onLine
    self.promise = promise
  }

  func channelActive(context: ChannelHandlerContext) {
    var headers = HTTPHeaders([("Host", "localhost"), ("Connection", "close")])
    if let requestBody {
      headers.add(name: "Content-Type", value: "application/json")
      headers.add(name: "Content-Length", value: String(requestBody.readableBytes))
    }
    let head = HTTPRequestHead(version: .http1_1, method: method, uri: path, headers: headers)
    context.write(wrapOutboundOut(.head(head)), promise: nil)
    if let requestBody { context.write(wrapOutboundOut(.body(.byteBuffer(requestBody))), promise: nil) }
    context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head):
      reply.status = head.status
    case .body(let part):
      guard reply.body.readableBytes + part.readableBytes <= ControlClient.longestReply else {
        return end(context, .failure(.garbled("it says too much")))
      }
      reply.body.writeImmutableBuffer(part)
      if let onLine, reply.status == .ok { handOut(onLine) }
    case .end:
      end(context, .success(reply))
    }
  }

  /// Takes the complete lines out of the body.
  private func handOut(_ onLine: (ByteBuffer) -> Void) {
    while let end = reply.body.readableBytesView.firstIndex(of: UInt8(ascii: "\n")) {
      let length = end + 1 - reply.body.readerIndex
      if let line = reply.body.readSlice(length: length) { onLine(line) }
    }
    reply.body.discardReadBytes()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    let closed = error as? HTTPParserError == .invalidEOFState
    let reason = error is HTTPParserError ? "it is not HTTP" : "\(error)"
    end(context, .failure(.garbled(closed ? Self.closedReason : reason)))
  }

  func channelInactive(context: ChannelHandlerContext) {
    promise.fail(ControlClient.Failure.garbled(Self.closedReason))
  }

  private static let closedReason = "it closed the connection"

  private func end(_ context: ChannelHandlerContext, _ result: Result<Reply, ControlClient.Failure>) {
    promise.completeWith(result.mapError { $0 })
    context.close(promise: nil)
  }
}
