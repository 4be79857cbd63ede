import Synchronization

/// What a group's pagers and the limit keeper share: a trivial handle around atomics. All counts are in pages.
///
/// Any thread may call. The keeper sets the measured size; pagers correct it between two measurements by what they map and
/// evict themselves. It is an estimate on purpose: it decides who waits, never what a page contains.
struct GroupAccount: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let limit = Atomic<Int>(0)
    let isAuto = Atomic<Bool>(false)
    let autoPages = Atomic<Int>(0)
    let stalled = Atomic<UInt64>(0)
    let reserve = Atomic<Int>(0)
    let resident = Atomic<Int>(0)
    let peakResident = Atomic<Int>(0)
    let swapped = Atomic<Int>(0)
    let peakSwapped = Atomic<Int>(0)
    let unreclaimable = Atomic<Bool>(false)
    let isOverQuota = Atomic<Bool>(false)
    let evictions = Atomic<Int>(0)
    let faults = Atomic<Int>(0)
    let refaults = Atomic<Int>(0)
    let zeroFills = Atomic<Int>(0)
  }

  private let fields: UnsafeMutablePointer<Fields>
  /// Of the page tables of its address spaces.
  let chunks: ChunkShare

  static func create(limit: GroupLimit) -> GroupAccount {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    let account = GroupAccount(fields: fields, chunks: .create())
    account.setLimit(limit)
    return account
  }

  func destroy() {
    chunks.destroy()
    fields.deinitialize(count: 1)
    fields.deallocate()
  }

  func setLimit(_ limit: GroupLimit) {
    fields.pointee.autoPages.store(resident, ordering: .relaxed)
    fields.pointee.limit.store(limit.fixedPages ?? 0, ordering: .relaxed)
    fields.pointee.isAuto.store(limit.isAuto, ordering: .relaxed)
  }

  /// The limit that is enforced; nil: none, or an automatic one.
  var limit: Int? {
    let pages = fields.pointee.limit.load(ordering: .relaxed)
    return pages > 0 ? pages : nil
  }

  @inline(__always)
  var limitIsAuto: Bool { fields.pointee.isAuto.load(ordering: .relaxed) }

  var currentLimit: GroupLimit { limitIsAuto ? .auto : limit.map { .fixed(pages: $0) } ?? .none }

  /// Where an automatic limit is now. Set by the keeper.
  var autoPages: Int {
    get { fields.pointee.autoPages.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.autoPages.store(newValue, ordering: .relaxed) }
  }

  /// Time that threads have waited for swapped pages, all together; counted while the limit is automatic.
  var stalledNanoseconds: UInt64 { fields.pointee.stalled.load(ordering: .relaxed) }

  @inline(__always)
  func stalled(nanoseconds: UInt64) { fields.pointee.stalled.wrappingAdd(nanoseconds, ordering: .relaxed) }

  var resident: Int { fields.pointee.resident.load(ordering: .relaxed) }
  var peakResident: Int { fields.pointee.peakResident.load(ordering: .relaxed) }
  var swapped: Int { fields.pointee.swapped.load(ordering: .relaxed) }
  var peakSwapped: Int { fields.pointee.peakSwapped.load(ordering: .relaxed) }
  var evictions: Int { fields.pointee.evictions.load(ordering: .relaxed) }
  var faults: Int { fields.pointee.faults.load(ordering: .relaxed) }
  var refaults: Int { fields.pointee.refaults.load(ordering: .relaxed) }
  var zeroFills: Int { fields.pointee.zeroFills.load(ordering: .relaxed) }

  /// The keeper's measurement.
  func measured(residentPages: Int) {
    fields.pointee.resident.store(residentPages, ordering: .relaxed)
    if residentPages > peakResident { fields.pointee.peakResident.store(residentPages, ordering: .relaxed) }
  }

  @inline(__always)
  func mapped(pages: Int) { fields.pointee.resident.wrappingAdd(pages, ordering: .relaxed) }

  @inline(__always)
  func evicted(pages: Int) {
    // In this order: the keeper reads them in the other one.
    fields.pointee.evictions.wrappingAdd(pages, ordering: .relaxed)
    fields.pointee.resident.wrappingSubtract(pages, ordering: .relaxed)
  }

  @inline(__always)
  func faultedIn(fromCache: Bool) {
    fields.pointee.resident.wrappingAdd(1, ordering: .relaxed)
    fields.pointee.faults.wrappingAdd(1, ordering: .relaxed)
    if fromCache { fields.pointee.refaults.wrappingAdd(1, ordering: .relaxed) }
  }

  @inline(__always)
  func zeroFilled(pages: Int) { fields.pointee.zeroFills.wrappingAdd(pages, ordering: .relaxed) }

  /// Pages that only the daemon has. Changes with every store and load, forks included.
  @inline(__always)
  func swappedChanged(by pages: Int) {
    let now = fields.pointee.swapped.wrappingAdd(pages, ordering: .relaxed).newValue
    if now > peakSwapped { fields.pointee.peakSwapped.store(now, ordering: .relaxed) }
  }

  /// Nothing more can be evicted (pinned, shared, pool full): the limit is exceeded rather than anybody kept waiting for ever.
  var unreclaimable: Bool {
    get { fields.pointee.unreclaimable.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.unreclaimable.store(newValue, ordering: .relaxed) }
  }

  /// The group's user has swapped out as much as one may: eviction stands still. Set by the keeper.
  var isOverQuota: Bool {
    get { fields.pointee.isOverQuota.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.isOverQuota.store(newValue, ordering: .relaxed) }
  }

  /// Pages kept free below the limit while memory grows in mappings that are not registered yet: as much can appear before the next
  /// look. Set by the keeper.
  var reserve: Int {
    get { fields.pointee.reserve.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.reserve.store(newValue, ordering: .relaxed) }
  }

  /// Pages that may still be mapped before growth has to wait.
  @inline(__always)
  var room: Int {
    guard let limit else { return Int.max / 2 }
    return unreclaimable ? Int.max / 2 : limit - reserve - resident
  }

  /// Distance to the limit below which growth is watched closely: first touches are granted page by page rather than by
  /// 2 MiB, and new mappings are registered as they appear.
  static func closeness(toLimit limit: Int) -> Int { min(max(limit / 2, 4096), 32768) }

  @inline(__always)
  var isNearLimit: Bool {
    guard let limit else { return false }
    return limit - resident < Self.closeness(toLimit: limit)
  }

  /// Watermarks as kswapd has them: reclaim begins above `high` and ends below `low`. For a group with a limit.
  var high: Int { (limit ?? 0) - reserve - Self.step(ofLimit: limit ?? 0) }
  var low: Int { high - Self.step(ofLimit: limit ?? 0) }
  /// A 64th, but 4 MiB where that is no more than a 16th, 1 MiB at least, which is what a command moves, and 16 MiB at most: what burst there can be
  /// grows with the CPUs, not with the limit. The smaller it is, the more often program and pager wait for each other.
  private static func step(ofLimit limit: Int) -> Int { min(max(min(limit / 16, 1024), limit / 64, 256), 4096, limit / 8) }

  /// For `reserve`, while memory grows unseen, however slowly: 1 MiB.
  static let leastReserve = 256

  /// For `reserve`, at most: 16 ms of growth at 2 GiB/s, which is how long a busy machine may keep the pager from running, but no more than a
  /// quarter of the limit.
  static func growthReserve(ofLimit limit: Int) -> Int { min(8192, limit / 4) }
}
