import Glibc

/// Connections that are not served yet, by the user they come from. A few of each user are in their handshake at a time, others
/// wait for their turn: so a user with thousands of connections that say nothing keeps only its own programs waiting.
///
/// Any thread may call.
final class HandshakeQueue: @unchecked Sendable {
  /// Of one user.
  struct Bounds: Sendable {
    /// Handshakes at a time, each of which has a thread and descriptors of its own.
    var underWay = 64
    /// Connections that wait for their turn: a descriptor each.
    var waiting = 1024
  }

  enum Admission: Equatable {
    /// Its handshake is under way, and has to be told of when it is over.
    case begin
    /// `next` gives it back.
    case wait
    /// The user has too many connections.
    case refused
  }

  private struct Share {
    var underWay = 0
    /// In the order in which they came.
    var waiting: ArraySlice<Int32> = []
  }

  private let bounds: Bounds
  /// Connections of all users together, under way or waiting.
  private let most: Int
  private let lock = Lock.create()
  private var shares: [UInt32: Share] = [:]
  private var total = 0

  init(bounds: Bounds = Bounds(), most: Int = 8192) {
    self.bounds = bounds
    self.most = most
  }

  deinit { lock.destroy() }

  func admit(_ connection: Int32, of user: UInt32) -> Admission {
    lock.lock()
    defer { lock.unlock() }
    var share = shares[user] ?? Share()
    let isFull = share.waiting.count >= bounds.waiting || total >= most
    guard share.underWay < bounds.underWay || !isFull else { return .refused }
    total += 1
    defer { shares[user] = share }
    if share.underWay < bounds.underWay {
      share.underWay += 1
      return .begin
    }
    share.waiting.append(connection)
    return .wait
  }

  /// A handshake of the user is over. Returns the connection whose handshake is under way from now on, if there is one.
  func next(afterOneOf user: UInt32) -> Int32? {
    lock.lock()
    defer { lock.unlock() }
    guard var share = shares[user] else { return nil }
    total -= 1
    guard let connection = share.waiting.popFirst() else {
      share.underWay -= 1
      shares[user] = share.underWay == 0 ? nil : share
      return nil
    }
    shares[user] = share
    return connection
  }
}
