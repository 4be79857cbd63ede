import Synchronization

/// Frames of the swap cache promised to evictions in flight: what leaves a target must have a place, because it cannot go back. So nobody
/// takes a frame who was not promised one.
///
/// A trivial handle shared by all pagers.
struct FrameBudget: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let reserved = Atomic<Int>(0)
    let poolFull = Atomic<Bool>(false)
  }

  private let fields: UnsafeMutablePointer<Fields>
  private let cache: SwapCache
  private let table: SlotTable
  private let areas: AreaTable

  static func create(cache: SwapCache, table: SlotTable, areas: AreaTable) -> FrameBudget {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    return FrameBudget(fields: fields, cache: cache, table: table, areas: areas)
  }

  func destroy() {
    fields.deinitialize(count: 1)
    fields.deallocate()
  }

  /// Promises `pages` frames and slots, or nothing.
  func reserve(_ pages: Int) -> Bool {
    let before = fields.pointee.reserved.wrappingAdd(pages, ordering: .acquiringAndReleasing).oldValue
    if cache.freeFrames - before >= pages && table.maximumSlots - table.inUse - before >= pages { return true }
    release(pages)
    return false
  }

  /// Promises frames and slots for one command: at most a quarter of those that nobody was promised, so that however many targets ask, and
  /// however few of them answer, there are some for the next one. 0: there are none.
  func reserveShare(atMost most: Int) -> Int {
    let available = min(cache.freeFrames, table.maximumSlots - table.inUse) - fields.pointee.reserved.load(ordering: .relaxed)
    let share = min(most, max(Self.leastShare, available / 4))
    return reserve(share) ? share : 0
  }

  /// Pages. A command costs some 20 us however small it is, as much as moving four pages.
  private static let leastShare = 64

  /// Promised frames.
  var reserved: Int { fields.pointee.reserved.load(ordering: .relaxed) }

  /// Whether so many frames hold no page, promised or not.
  func hasFrames(_ pages: Int) -> Bool { cache.freeFrames >= pages }

  func release(_ pages: Int) {
    fields.pointee.reserved.wrappingSubtract(pages, ordering: .acquiringAndReleasing)
  }

  /// The pool is full, and no swap area could take anything.
  var isStuck: Bool { poolFull && !areas.hasRoom }

  /// The last attempt to compress found the pool at its limit.
  var poolFull: Bool {
    get { fields.pointee.poolFull.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.poolFull.store(newValue, ordering: .relaxed) }
  }
}
