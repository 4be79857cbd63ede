/// What is not settled of the mremap and munmap calls whose events were read since the kernel was last quiet.
///
/// The kernel queues an event after it has dropped the lock of the address space, so the events of two threads can arrive in another order than
/// their calls were made in. Three rules bring the order back:
///
/// - a mapping can only move to where nothing is. If something is there by our books, the event that takes it away is still to
///   come, and the move waits for it (`deferred`). So does a later move from there: moves are told in order, since the preload
///   library lets a thread call mremap, or fork, when the one before is through;
/// - an unmap of a place that something moved to may be older than the move: the place was left by it. The same goes for a place that a
///   deferred move has yet to leave. Such an unmap waits (`unmaps`), and then the kernel's own list decides;
/// - all of that ends when the kernel is quiet: it filled or moved a page, or a probe says so. Then no event is outstanding.
///
/// Pages, half open ranges.
struct PendingMoves {
  struct Move {
    var from: UInt64
    var to: UInt64
    var count: UInt64
    /// Not carried out yet.
    var deferred: Bool
  }

  struct Unmap {
    var start: UInt64
    var end: UInt64
  }

  private(set) var moveCount = 0
  private(set) var deferredCount = 0
  private(set) var unmapCount = 0
  private let moves: UnsafeMutablePointer<Move>
  private let unmaps: UnsafeMutablePointer<Unmap>

  /// As many calls of different threads can be under way without losing track.
  static let capacity = 256

  init() {
    moves = .allocate(capacity: Self.capacity)
    unmaps = .allocate(capacity: Self.capacity)
  }

  func destroy() {
    moves.deallocate()
    unmaps.deallocate()
  }

  /// Whether look-ups have to wait.
  var isUnsettled: Bool { deferredCount > 0 || unmapCount > 0 }

  /// The moves since the kernel was last quiet, in the order of their events.
  subscript(index: Int) -> Move { moves[index] }

  func unmap(_ index: Int) -> Unmap { unmaps[index] }

  /// Notes a move. false: there is no room, so it cannot be deferred.
  mutating func note(_ move: Move) -> Bool {
    guard moveCount < Self.capacity else { return false }
    moves[moveCount] = move
    moveCount += 1
    if move.deferred { deferredCount += 1 }
    return true
  }

  /// Whether the move at `index` (or one after the last) starts from where a deferred one before it leads to.
  func follows(_ move: Move, before index: Int) -> Bool {
    for other in 0..<index where moves[other].deferred {
      if moves[other].to < move.from + move.count && move.from < moves[other].to + moves[other].count { return true }
    }
    return false
  }

  /// It is about to be carried out.
  mutating func carriedOut(_ index: Int) {
    moves[index].deferred = false
    deferredCount -= 1
  }

  /// Whether an unmap of the range may be older than a move that the books show already, or that waits.
  func concernsMove(_ low: UInt64, _ high: UInt64) -> Bool {
    for index in 0..<moveCount {
      let move = moves[index]
      if move.to < high && low < move.to + move.count { return true }
      if move.deferred && move.from < high && low < move.from + move.count { return true }
    }
    return false
  }

  /// false: there is no room.
  mutating func deferUnmap(_ low: UInt64, _ high: UInt64) -> Bool {
    guard unmapCount < Self.capacity else { return false }
    unmaps[unmapCount] = Unmap(start: low, end: high)
    unmapCount += 1
    return true
  }

  mutating func removeUnmap(_ index: Int) {
    unmapCount -= 1
    unmaps[index] = unmaps[unmapCount]
  }

  /// The kernel is quiet and everything is settled.
  @inline(__always)
  mutating func forgetMoves() { moveCount = 0 }

  /// What a fork inherits: the child's address space was copied in the middle of it.
  func copy() -> PendingMoves {
    var result = PendingMoves()
    for index in 0..<moveCount { result.moves[index] = moves[index] }
    for index in 0..<unmapCount { result.unmaps[index] = unmaps[index] }
    result.moveCount = moveCount
    result.deferredCount = deferredCount
    result.unmapCount = unmapCount
    return result
  }
}
