import Synchronization

/// Counters of one target, in pages, named as /proc/vmstat would. Written by its pager, read by anyone.
struct TargetCounters: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let evictions = Atomic<Int>(0)
    let faults = Atomic<Int>(0)
    let refaults = Atomic<Int>(0)
    let zeroFills = Atomic<Int>(0)
    let swapped = Atomic<Int>(0)
    let resident = Atomic<Int>(0)
    let wanted = Atomic<Int>(0)
    let skip = Atomic<Int>(0)
    let sweptInVain = Atomic<Int>(0)
    let unregisteredGrowth = Atomic<Bool>(false)
    let poisoned = Atomic<Int>(0)
    let registrations = Atomic<Int>(0)
    let askedSince = Atomic<UInt64>(0)
    let chunks = Atomic<Int>(0)
  }

  private let fields: UnsafeMutablePointer<Fields>

  static func create() -> TargetCounters {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    return TargetCounters(fields: fields)
  }

  func destroy() {
    fields.deinitialize(count: 1)
    fields.deallocate()
  }

  var evictions: Int { fields.pointee.evictions.load(ordering: .relaxed) }
  var faults: Int { fields.pointee.faults.load(ordering: .relaxed) }
  var refaults: Int { fields.pointee.refaults.load(ordering: .relaxed) }
  var zeroFills: Int { fields.pointee.zeroFills.load(ordering: .relaxed) }
  var poisoned: Int { fields.pointee.poisoned.load(ordering: .relaxed) }
  var swapped: Int { fields.pointee.swapped.load(ordering: .relaxed) }

  @inline(__always)
  func evicted(pages: Int) { fields.pointee.evictions.wrappingAdd(pages, ordering: .relaxed) }
  @inline(__always)
  func faultedIn(fromCache: Bool) {
    fields.pointee.faults.wrappingAdd(1, ordering: .relaxed)
    if fromCache { fields.pointee.refaults.wrappingAdd(1, ordering: .relaxed) }
  }
  @inline(__always)
  func zeroFilled(pages: Int) { fields.pointee.zeroFills.wrappingAdd(pages, ordering: .relaxed) }
  func poisonedPage() { fields.pointee.poisoned.wrappingAdd(1, ordering: .relaxed) }
  @inline(__always)
  func setSwapped(_ pages: Int) { fields.pointee.swapped.store(pages, ordering: .relaxed) }

  /// Resident anonymous pages at the keeper's last measurement.
  var resident: Int {
    get { fields.pointee.resident.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.resident.store(newValue, ordering: .relaxed) }
  }

  /// Pages the keeper or an `evict` wants out. The pager works it off.
  var wanted: Int {
    get { fields.pointee.wanted.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.wanted.store(newValue, ordering: .relaxed) }
  }
  /// Takes back that `pages` are wanted, unless somebody wants more than that.
  func withdraw(_ pages: Int) {
    let wanted = self.wanted
    guard wanted > 0 && wanted <= pages else { return }
    _ = fields.pointee.wanted.compareExchange(expected: wanted, desired: 0, ordering: .relaxed)
  }
  func workedOff(_ pages: Int) { fields.pointee.wanted.wrappingSubtract(pages, ordering: .relaxed) }

  /// Pages of the address space that the next sweep leaves out, because those before them are in use. Taken by the pager.
  var skip: Int {
    get { fields.pointee.skip.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.skip.store(newValue, ordering: .relaxed) }
  }

  /// How often the pager went through all of the target's memory and could evict nothing.
  var sweptInVain: Int {
    get { fields.pointee.sweptInVain.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.sweptInVain.store(newValue, ordering: .relaxed) }
  }

  /// Monotonic nanoseconds when the oldest command was given that the agent has not ended; 0: it has none.
  var askedSince: UInt64 {
    get { fields.pointee.askedSince.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.askedSince.store(newValue, ordering: .relaxed) }
  }

  /// Mappings that were registered: each is memory that appeared without the pager.
  var registrations: Int { fields.pointee.registrations.load(ordering: .relaxed) }
  func registeredMapping() { fields.pointee.registrations.wrappingAdd(1, ordering: .relaxed) }

  /// Chunks of the page tables of the target and of its young children.
  var chunks: Int {
    get { fields.pointee.chunks.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.chunks.store(newValue, ordering: .relaxed) }
  }

  /// The keeper saw memory grow that the pager did not map: mappings that are not registered.
  var unregisteredGrowth: Bool {
    get { fields.pointee.unregisteredGrowth.load(ordering: .relaxed) }
    nonmutating set { fields.pointee.unregisteredGrowth.store(newValue, ordering: .relaxed) }
  }
}
