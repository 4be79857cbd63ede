import Synchronization

/// The order in which objects came into the pool, oldest first: a ring of slot numbers in a sparse memfd, 4 bytes each.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. Like the swap cache's order it is a hint. An entry carries five bits of
/// the version that the slot's word had when the object was made; one whose slot has moved on since is stale, and is
/// swept out when the ring has become three times as long as the pool has objects: one that was a clean copy may have two that are not
/// stale. Nothing is kept while there is no swap area.
struct WritebackOrder: @unchecked Sendable {
  private struct State {
    var head: UInt64 = 0
    var tail: UInt64 = 0
    /// Entries before this one have given their RAM back.
    var discarded: UInt64 = 0
    var isEnabled = false
  }

  private let ring: Mapping
  private let state: UnsafeMutablePointer<State>
  private let lock: Lock

  /// Entries: twice as many as slots.
  private static let capacity: UInt64 = 1 << 27
  private static let entriesPerPiece = UInt64(64 << 10) / 4
  private static let versionBits: UInt32 = 5
  /// Shorter rings are not swept.
  private static let leastSwept = 1 << 16

  static func create() throws(KernelError) -> WritebackOrder {
    let ring = try Mapping.create(name: "vswapd-writeback-order", length: Int(capacity) * 4)
    let state = UnsafeMutablePointer<State>.allocate(capacity: 1)
    state.initialize(to: State())
    return WritebackOrder(ring: ring, state: state, lock: .create())
  }

  func destroy() {
    ring.destroy()
    state.deallocate()
    lock.destroy()
  }

  private func entry(_ position: UInt64) -> UnsafeMutablePointer<UInt32> {
    ring.base.assumingMemoryBound(to: UInt32.self) + Int(position % Self.capacity)
  }

  private static func pack(_ slot: SlotNumber, _ word: SlotWord) -> UInt32 {
    slot << versionBits | UInt32(truncatingIfNeeded: word.version) & (1 << versionBits - 1)
  }

  /// From now on entries are kept.
  func enable() {
    lock.lock()
    state.pointee.isEnabled = true
    lock.unlock()
  }

  var isEnabled: Bool {
    lock.lock()
    defer { lock.unlock() }
    return state.pointee.isEnabled
  }

  /// The slot's word says pool since just now. `objects`: how many the pool has.
  func push(_ slot: SlotNumber, _ word: SlotWord, objects: Int, table: SlotTable) {
    lock.lock()
    defer { lock.unlock() }
    guard state.pointee.isEnabled else { return }
    if Int(state.pointee.tail - state.pointee.head) > max(3 * objects, Self.leastSwept) { sweep(table) }
    guard state.pointee.tail - state.pointee.head < Self.capacity else { return }
    entry(state.pointee.tail).pointee = Self.pack(slot, word)
    state.pointee.tail += 1
  }

  /// The oldest entry that is not stale. Whether it still holds, the word tells whoever has retained the slot.
  func pop(table: SlotTable) -> SlotNumber? {
    lock.lock()
    defer { lock.unlock() }
    while state.pointee.head < state.pointee.tail {
      let packed = entry(state.pointee.head).pointee
      state.pointee.head += 1
      discardPassed()
      if Self.isLive(packed, table) { return packed >> Self.versionBits }
    }
    return nil
  }

  /// Compaction changes a word by one; it takes four changes until the same slot is in the pool with another page.
  private static func isLive(_ packed: UInt32, _ table: SlotTable) -> Bool {
    let slot = packed >> versionBits
    let word = table.word(slot)
    return word.kind == .pool && (pack(slot, word) &- packed) & (1 << versionBits - 1) < 4
  }

  /// Keeps what is alive, in order. O(length), at most once in as many pushes as there are objects.
  private func sweep(_ table: SlotTable) {
    var to = state.pointee.tail
    var from = state.pointee.tail
    while from > state.pointee.head {
      from -= 1
      let packed = entry(from).pointee
      guard Self.isLive(packed, table) else { continue }
      to -= 1
      entry(to).pointee = packed
    }
    state.pointee.head = to
    discardPassed()
  }

  private func discardPassed() {
    while state.pointee.discarded + Self.entriesPerPiece <= state.pointee.head {
      let offset = Int(state.pointee.discarded % Self.capacity) * 4
      // Without it the RAM stays: no harm but that.
      try? ring.discard(offset: offset, length: Int(Self.entriesPerPiece) * 4)
      state.pointee.discarded += Self.entriesPerPiece
    }
  }

  /// RAM of the ring, in bytes.
  var metadataBytes: Int { ring.allocatedBytes() }
}
