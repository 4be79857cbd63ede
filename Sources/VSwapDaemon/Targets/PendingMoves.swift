/// What is not settled of the mremap calls whose events were read.
///
/// The kernel queues an event after it has dropped the lock of the address space, so the events of two threads can arrive in another order than their calls
/// were made in. Two things bring the order back:
///
/// - a mapping can only move to where nothing is. If something is there by our books, the event that takes it away is still to
///   come, and the move waits for it (`deferred`);
/// - a moving mremap says REMAP, and then UNMAP for the old place, which may be taken again by then. That UNMAP says nothing new
///   and is recognised by its range (`tails`).
///
/// Both end when the kernel is seen to be quiet (it filled or moved a page): then no event is outstanding. Pages, half open ranges.
struct PendingMoves {
  struct Move {
    var from: UInt64
    var to: UInt64
    var count: UInt64
  }

  private(set) var deferredCount = 0
  private(set) var tailCount = 0
  private let deferred: UnsafeMutablePointer<Move>
  private let tails: UnsafeMutablePointer<Move>

  /// As many calls of different threads can be under way without losing track.
  static let capacity = 256

  init() {
    deferred = .allocate(capacity: Self.capacity)
    tails = .allocate(capacity: Self.capacity)
  }

  func destroy() {
    deferred.deallocate()
    tails.deallocate()
  }

  subscript(index: Int) -> Move { deferred[index] }

  /// false: there is no room.
  mutating func deferMove(_ move: Move) -> Bool {
    guard deferredCount < Self.capacity else { return false }
    deferred[deferredCount] = move
    deferredCount += 1
    return true
  }

  /// Takes out a deferred move; the others keep their order.
  mutating func remove(_ index: Int) -> Move {
    let move = deferred[index]
    for later in index + 1..<deferredCount { deferred[later - 1] = deferred[later] }
    deferredCount -= 1
    return move
  }

  mutating func expectTail(of move: Move) {
    guard tailCount < Self.capacity else { return }
    tails[tailCount] = move
    tailCount += 1
  }

  /// Whether an UNMAP of the range is the tail of a move; it is expected no longer then.
  mutating func takeTail(from low: UInt64, below high: UInt64) -> Bool {
    for index in 0..<tailCount where tails[index].from == low && tails[index].from + tails[index].count == high {
      tailCount -= 1
      tails[index] = tails[tailCount]
      return true
    }
    return false
  }

  mutating func forgetTails() { tailCount = 0 }
}
