import NIOCore
import NIOHTTP1
import Synchronization

/// A response that is sent line by line, while the work that it tells about goes on. A client that reads slowly misses lines of
/// progress; it neither stops that work nor takes memory.
///
/// `begin` and `send` are called from the worker thread that does the work.
final class LineStream: Sendable {
  /// How long the client may take to make room for a line that must not be dropped.
  private static let patience = TimeAmount.seconds(10)

  private let channel: any Channel
  private let keepAlive: Bool
  private let began = Atomic(false)
  /// A line is on its way to the client. One at a time.
  private let isSending = Atomic(false)

  init(channel: any Channel, keepAlive: Bool) {
    self.channel = channel
    self.keepAlive = keepAlive
  }

  /// Whether anything was sent, and so no other response can be.
  var hasBegun: Bool {
    began.load(ordering: .relaxed)
  }

  /// Whether somebody is there to send to.
  var hasClient: Bool { channel.isActive }

  /// Sends the head, if that was not done yet.
  func begin() {
    guard !began.exchange(true, ordering: .relaxed) else { return }
    var headers = HTTPHeaders([("Content-Type", "application/x-ndjson")])
    if !keepAlive { headers.add(name: "Connection", value: "close") }
    let head = HTTPResponseHead(version: .http1_1, status: .ok, headers: headers)
    channel.write(HTTPServerResponsePart.head(head), promise: nil)
  }

  /// Sends `line`. While the one before is still on its way it drops a droppable line and waits with any other. Returns whether
  /// the client is still there.
  func send(_ line: ByteBuffer, isDroppable: Bool) -> Bool {
    guard hasClient else { return false }
    if isDroppable && isSending.load(ordering: .relaxed) { return true }
    begin()
    isSending.store(true, ordering: .relaxed)
    let sent = channel.writeAndFlush(HTTPServerResponsePart.body(.byteBuffer(line)))
    sent.whenComplete { [self] _ in isSending.store(false, ordering: .relaxed) }
    return isDroppable || waits(for: sent)
  }

  /// Whether it arrives in time. A client that takes nothing for so long has gone.
  private func waits(for sent: EventLoopFuture<Void>) -> Bool {
    let channel = self.channel
    let timer = channel.eventLoop.scheduleTask(in: Self.patience) { channel.close(promise: nil) }
    defer { timer.cancel() }
    return (try? sent.wait()) != nil
  }
}
