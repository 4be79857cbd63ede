import CUserfault
import Glibc
import Synchronization

/// Some adjacent pages that a stream of faults will want next, being unpacked by a worker (`Unpackers`) while the program is still
/// busy with those before.
///
/// A trivial handle. Belongs to one pager, which alone fills, takes from and clears it. Pages are claimed one after the other, by the
/// worker and, if the pager comes before it is through, by the pager as well.
///
/// Whoever unpacks a page takes a reference to its slot first, and the window keeps it until the page was taken or is given up. So the
/// slot was not freed since: if a page table names it for a page afterwards, what was unpacked is that page's content.
struct ReadAheadWindow: @unchecked Sendable {
  struct Fields: ~Copyable {
    /// The next one to unpack.
    let claimed = Atomic<Int>(0)
    /// A worker has the window, or it waits for one: nobody else may change or clear it.
    let isPosted = Atomic<Bool>(false)
    /// Changes only while no worker has the window.
    var count = 0
  }

  /// The pager's own, which it changes at any time.
  private struct Position {
    var first: UInt64 = 0
    var taken = 0
  }

  /// Of a page; what is past `unavailable` has content and a reference.
  private enum State {
    static let pending: UInt8 = 0
    static let unavailable: UInt8 = 1
    static let cached: UInt8 = 2
    static let unpacked: UInt8 = 3
  }

  static let pages = 32
  private static let patience = 256

  private let fields: UnsafeMutablePointer<Fields>
  private let position: UnsafeMutablePointer<Position>
  private let slots: UnsafeMutablePointer<SlotNumber>
  private let states: UnsafeMutablePointer<Atomic<UInt8>>
  private let content: UnsafeMutableRawPointer
  private let layer: SlotLayer

  static func create(layer: SlotLayer) throws(KernelError) -> ReadAheadWindow {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS
    guard let content = mmap(nil, pages * pageSize, PROT_READ | PROT_WRITE, flags, -1, 0), content != MAP_FAILED
    else { throw .last("mmap") }
    let window = ReadAheadWindow(
      fields: .allocate(capacity: 1), position: .allocate(capacity: 1), slots: .allocate(capacity: pages),
      states: .allocate(capacity: pages),
      content: content, layer: layer)
    window.fields.initialize(to: Fields())
    window.position.initialize(to: Position())
    window.slots.initialize(repeating: 0, count: pages)
    for index in 0..<pages { (window.states + index).initialize(to: Atomic(State.pending)) }
    return window
  }

  /// Waits for a worker that has it.
  func destroy() {
    while !clear() { usleep(100) }
    munmap(content, Self.pages * pageSize)
    for index in 0..<Self.pages { (states + index).deinitialize(count: 1) }
    states.deallocate()
    slots.deallocate()
    fields.deinitialize(count: 1)
    fields.deallocate()
    position.deallocate()
  }

  // MARK: - The pager

  /// A worker has it, or it waits for one.
  var isPosted: Bool { fields.pointee.isPosted.load(ordering: .acquiring) }
  var isEmpty: Bool { fields.pointee.count == 0 }
  /// Page after the last one; 0 of an empty window.
  var end: UInt64 { position.pointee.first + UInt64(fields.pointee.count) }

  /// Whether the page is in it and was not passed yet.
  @inline(__always)
  func holds(_ page: UInt64) -> Bool {
    page >= position.pointee.first + UInt64(position.pointee.taken) && page < end
  }

  /// Notes the slots from `first` on, as long as there are any, and hands the window to the workers. Must be empty. Returns how many.
  func post(from first: UInt64, _ table: PageTable, to workers: Unpackers) -> Int {
    var count = 0
    while count < Self.pages {
      let entry = table.entry(first + UInt64(count))
      guard PageTableEntry.isSlot(entry) else { break }
      slots[count] = entry
      states[count].store(State.pending, ordering: .relaxed)
      count += 1
    }
    guard count > 0 else { return 0 }
    position.pointee.first = first
    position.pointee.taken = 0
    fields.pointee.count = count
    fields.pointee.claimed.store(0, ordering: .relaxed)
    fields.pointee.isPosted.store(true, ordering: .releasing)
    if workers.post(.window(self), most: Unpackers.capacity) { return count }
    fields.pointee.isPosted.store(false, ordering: .relaxed)
    clear()
    return 0
  }

  /// Content of `page` and those behind it, whether it came from the cache, and how many there are, `most` at most; helps the worker if
  /// it is not through. nil: the page itself cannot be had.
  func take(
    _ page: UInt64, atMost most: Int, _ table: PageTable, codec: Codec
  ) -> (content: UnsafeMutableRawPointer, count: Int, fromCache: Bool)? {
    unpack(codec: codec)
    let index = Int(page - position.pointee.first)
    var count = 0
    while count < most && index + count < fields.pointee.count {
      guard isUnpacked(index + count), table.entry(page + UInt64(count)) == slots[index + count] else { break }
      count += 1
    }
    guard count > 0 else { return nil }
    return (content + index * pageSize, count, states[index].load(ordering: .relaxed) == State.cached)
  }

  /// That many pages from `page` on are the target's now.
  func passed(_ page: UInt64, _ count: Int) {
    let index = Int(page - position.pointee.first)
    giveUp(index, index + count)
    position.pointee.taken = index + count
    if position.pointee.taken == fields.pointee.count { clear() }
  }

  /// Gives up what was not taken. false: a worker still has it; later.
  @discardableResult
  func clear() -> Bool {
    guard !isPosted else { return false }
    giveUp(0, fields.pointee.count)
    position.pointee.first = 0
    fields.pointee.count = 0
    position.pointee.taken = 0
    return true
  }

  private func giveUp(_ first: Int, _ end: Int) {
    for index in first..<end where states[index].load(ordering: .acquiring) > State.unavailable {
      states[index].store(State.unavailable, ordering: .relaxed)
      layer.release(slots[index])
    }
  }

  /// Whether the page has its content. A worker that is at it gets some microseconds.
  private func isUnpacked(_ index: Int) -> Bool {
    for _ in 0..<Self.patience {
      let state = states[index].load(ordering: .acquiring)
      if state != State.pending { return state > State.unavailable }
      vs_pause()
    }
    return false
  }

  // MARK: - Worker and pager

  /// A worker's turn.
  func work(codec: Codec) {
    unpack(codec: codec)
    fields.pointee.isPosted.store(false, ordering: .releasing)
  }

  private func unpack(codec: Codec) {
    let count = fields.pointee.count
    while fields.pointee.claimed.load(ordering: .relaxed) < count {
      let index = fields.pointee.claimed.wrappingAdd(1, ordering: .relaxed).oldValue
      guard index < count else { return }
      states[index].store(unpack(slots[index], into: content + index * pageSize, codec), ordering: .releasing)
    }
  }

  private func unpack(_ slot: SlotNumber, into page: UnsafeMutableRawPointer, _ codec: Codec) -> UInt8 {
    guard layer.table.tryRetain(slot) else { return State.unavailable }
    // It was given up and is being allocated anew: it has an owner already, and no content yet.
    guard layer.table.word(slot).kind != .free else {
      layer.release(slot)
      return State.unavailable
    }
    switch layer.load(slot, into: page, codec: codec) {
    case .cached: return State.cached
    case .zero, .pool: return State.unpacked
    case .area, .lost:
      layer.release(slot)
      return State.unavailable
    }
  }
}
