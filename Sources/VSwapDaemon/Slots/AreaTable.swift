import CUserfault
import Synchronization

/// What the daemon keeps in RAM about its swap areas: 8 bytes per segment. Which slot lies where is in the slots' words, and the other way
/// round in the segments themselves.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. Life of a segment:
///
///     free -> open (a writer fills it) -> sealed (words name objects in it) -> empty (no word does any more) -> free
///
/// `open` goes straight back to free if it could not be written. Segment 0 carries the area's signature and is never free.
struct AreaTable: @unchecked Sendable {
  enum SegmentState: UInt64 {
    case free = 0
    case open = 1
    case sealed = 2
    case empty = 3
  }

  /// Whether an area is written to.
  enum Rotation: UInt32 {
    /// There is no such area.
    case none = 0
    case active = 1
    /// swapoff is under way, or swapon.
    case draining = 2
    /// A write failed.
    case faulty = 3
  }

  /// One atomic word per segment: [generation 32 | state 6 | live objects 13 | their units 13]; on a list the lower 26 bits are the next
  /// segment.
  private typealias Record = Atomic<UInt64>

  /// First page of an area's mapping. Figures are relaxed atomics.
  private struct Header: ~Copyable {
    /// Stack of empty segments: tag (upper half) and the first one.
    let emptyHead: Atomic<UInt64>
    let segments: Atomic<Int>
    let liveObjects: Atomic<Int>
    let liveUnits: Atomic<Int>
    /// Segments that are not free.
    let used: Atomic<Int>
    /// Segments that somebody fills or writes.
    let open: Atomic<Int>
    let readErrors: Atomic<Int>
    let writeErrors: Atomic<Int>
    /// Writes for which there was no room where the area lies.
    let roomErrors: Atomic<Int>
    /// Monotonic nanoseconds before which it is not tried again after such a write; 0: the last one had room.
    let pausedUntil: Atomic<UInt64>
    /// Byte offset of the latest error.
    let errorOffset: Atomic<Int>
    /// Random, part of what objects are checked with.
    let identity: Atomic<UInt64>
    let rotation: Atomic<UInt32>
    let priority: Atomic<Int32>
  }

  /// Under `lock`.
  private struct Allocation {
    var mapping: Mapping?
    var segments: UInt32 = 0
    /// Segments 1 ..< fresh were in use at least once.
    var fresh: UInt32 = 1
    /// List of free ones; 0 ends it.
    var freeHead: UInt32 = 0
    /// When a segment of it was taken last: equal priorities take turns.
    var turn: UInt64 = 0
  }

  private let allocations: UnsafeMutablePointer<Allocation>
  /// The same mappings, for those who take no lock. Once made a mapping stays, emptied, for the next area of that number: who has read a
  /// slot's word may be on its way here while swapoff moves the slot and removes the area.
  private let bases: UnsafeMutablePointer<Atomic<UnsafeMutableRawPointer?>>
  private let lock: Lock
  private let turns: UnsafeMutablePointer<UInt64>

  static func create() -> AreaTable {
    let count = AreaPlace.maximumAreas
    let allocations = UnsafeMutablePointer<Allocation>.allocate(capacity: count)
    allocations.initialize(repeating: Allocation(), count: count)
    let bases = UnsafeMutablePointer<Atomic<UnsafeMutableRawPointer?>>.allocate(capacity: count)
    for area in 0..<count { (bases + area).initialize(to: Atomic(nil)) }
    let turns = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    turns.initialize(to: 0)
    return AreaTable(allocations: allocations, bases: bases, lock: .create(), turns: turns)
  }

  func destroy() {
    for area in 0..<AreaPlace.maximumAreas { allocations[area].mapping?.destroy() }
    allocations.deinitialize(count: AreaPlace.maximumAreas)
    allocations.deallocate()
    bases.deallocate()
    turns.deallocate()
    lock.destroy()
  }

  /// Relaxed loads, here and below: what has an area's number got it from somewhere that comes after `add`.
  private func header(_ area: Int) -> UnsafeMutablePointer<Header> {
    bases[area].load(ordering: .relaxed)!.assumingMemoryBound(to: Header.self)
  }

  private func record(_ area: Int, _ segment: UInt32) -> UnsafeMutablePointer<Record> {
    (bases[area].load(ordering: .relaxed)! + pageSize).assumingMemoryBound(to: Record.self) + Int(segment)
  }

  // MARK: Words

  private static let unitsMask: UInt64 = (1 << 13) - 1
  private static let oneObject: UInt64 = 1 << 13
  private static let linkMask: UInt64 = (1 << 26) - 1
  private static let stateShift: UInt64 = 26
  private static let generationShift: UInt64 = 32

  private static func word(_ generation: UInt32, _ state: SegmentState, low: UInt64) -> UInt64 {
    UInt64(generation) << generationShift | state.rawValue << stateShift | low
  }

  private static func state(_ word: UInt64) -> SegmentState {
    guard let state = SegmentState(rawValue: word >> stateShift & 63) else { preconditionFailure("impossible segment") }
    return state
  }

  private static func generation(_ word: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: word >> generationShift) }
  private static func live(_ word: UInt64) -> Int { Int(word >> 13 & unitsMask) }
  private static func units(_ word: UInt64) -> Int { Int(word & unitsMask) }

  // MARK: Areas

  /// Takes in an area of `bytes` (whole segments). nil: there are 16 already. While `rotation` is `draining` nothing is written to it: whoever does may
  /// begin before this returns, and has to find the area's file.
  func add(bytes: Int, priority: Int32, identity: UInt64, rotation: Rotation = .active) throws(KernelError) -> Int? {
    let segments = min(bytes, AreaPlace.maximumBytes) / AreaPlace.segmentBytes
    lock.lock()
    defer { lock.unlock() }
    guard let area = (0..<AreaPlace.maximumAreas).first(where: { allocations[$0].segments == 0 }) else { return nil }
    let length = pageSize + AreaPlace.maximumBytes / AreaPlace.segmentBytes * 8
    let mapping: Mapping
    if let kept = allocations[area].mapping {
      mapping = kept
    } else {
      mapping = try Mapping.create(name: "vswapd-segments", length: length)
    }
    allocations[area] = Allocation(mapping: mapping, segments: UInt32(segments))
    bases[area].store(mapping.base, ordering: .releasing)
    header(area).pointee.segments.store(segments, ordering: .relaxed)
    header(area).pointee.priority.store(priority, ordering: .relaxed)
    header(area).pointee.identity.store(identity, ordering: .relaxed)
    header(area).pointee.rotation.store(rotation.rawValue, ordering: .releasing)
    return area
  }

  /// Forgets an area in which nothing is alive and that nobody writes to.
  func remove(_ area: Int) {
    lock.lock()
    defer { lock.unlock() }
    precondition(isVacant(area), "an area in use was removed")
    header(area).pointee.rotation.store(Rotation.none.rawValue, ordering: .relaxed)
    let mapping = allocations[area].mapping!
    if (try? mapping.discard(offset: 0, length: mapping.length)) == nil {
      mapping.base.initializeMemory(as: UInt8.self, repeating: 0, count: mapping.length)
    }
    allocations[area] = Allocation(mapping: mapping)
  }

  /// Under the lock: nobody takes a segment of it any more that is not open afterwards.
  func setRotation(_ area: Int, _ rotation: Rotation) {
    lock.lock()
    header(area).pointee.rotation.store(rotation.rawValue, ordering: .sequentiallyConsistent)
    lock.unlock()
  }

  /// Nothing is alive in an area that left the rotation, and nobody writes to it, be it the writeback or the swapoff of another area.
  func isVacant(_ area: Int) -> Bool {
    // In this order: what is sealed counts as alive before it stops being open.
    header(area).pointee.open.load(ordering: .acquiring) == 0 && header(area).pointee.liveObjects.load(ordering: .acquiring) == 0
  }

  func rotation(_ area: Int) -> Rotation {
    guard bases[area].load(ordering: .acquiring) != nil else { return .none }
    return Rotation(rawValue: header(area).pointee.rotation.load(ordering: .sequentiallyConsistent)) ?? .none
  }

  /// Bytes of an area's segments that could be taken now, whatever its rotation.
  func freeBytes(_ area: Int) -> Int {
    let header = header(area)
    // Without segment 0.
    let segments = header.pointee.segments.load(ordering: .relaxed) - 1 - header.pointee.used.load(ordering: .relaxed)
    return segments * AreaPlace.segmentBytes
  }

  /// Bytes for segments, free or not.
  func bytes(_ area: Int) -> Int { (header(area).pointee.segments.load(ordering: .relaxed) - 1) * AreaPlace.segmentBytes }

  struct Figures {
    var liveObjects: Int
    var liveBytes: Int
    /// Bytes of segments in use.
    var usedBytes: Int
    var readErrors: Int
    var writeErrors: Int
    /// Writes that lacked room where the area lies, and whether the latest one did.
    var roomErrors: Int
    var lacksRoom: Bool
    var errorOffset: Int
  }

  func figures(_ area: Int) -> Figures {
    let header = header(area)
    return Figures(
      liveObjects: header.pointee.liveObjects.load(ordering: .relaxed),
      liveBytes: header.pointee.liveUnits.load(ordering: .relaxed) * AreaPlace.unit,
      usedBytes: header.pointee.used.load(ordering: .relaxed) * AreaPlace.segmentBytes,
      readErrors: header.pointee.readErrors.load(ordering: .relaxed),
      writeErrors: header.pointee.writeErrors.load(ordering: .relaxed),
      roomErrors: header.pointee.roomErrors.load(ordering: .relaxed),
      lacksRoom: header.pointee.pausedUntil.load(ordering: .relaxed) != 0,
      errorOffset: header.pointee.errorOffset.load(ordering: .relaxed))
  }

  func readFailed(_ area: Int, offset: Int) {
    header(area).pointee.errorOffset.store(offset, ordering: .relaxed)
    header(area).pointee.readErrors.add(1, ordering: .relaxed)
  }

  func writeFailed(_ area: Int, offset: Int) {
    header(area).pointee.errorOffset.store(offset, ordering: .relaxed)
    header(area).pointee.writeErrors.add(1, ordering: .relaxed)
    _ = header(area).pointee.rotation.compareExchange(
      expected: Rotation.active.rawValue, desired: Rotation.faulty.rawValue, ordering: .relaxed)
  }

  /// A write found no room where the area lies: its file system is full, though not for ever. Nothing is written to it until then.
  func lackedRoom(_ area: Int, until: UInt64) {
    header(area).pointee.roomErrors.add(1, ordering: .relaxed)
    header(area).pointee.pausedUntil.store(max(1, until), ordering: .relaxed)
  }

  /// Whether it is written to, now.
  private func takesWrites(_ area: Int) -> Bool {
    guard rotation(area) == .active else { return false }
    let pausedUntil = header(area).pointee.pausedUntil.load(ordering: .relaxed)
    return pausedUntil == 0 || pausedUntil <= vs_monotonic_ns()
  }

  /// RAM of the segments' records, in bytes.
  var metadataBytes: Int {
    lock.lock()
    defer { lock.unlock() }
    return (0..<AreaPlace.maximumAreas).reduce(0) { $0 + (allocations[$1].mapping?.allocatedBytes() ?? 0) }
  }

  // MARK: Segments

  /// A free segment of the active area with the highest priority that has one; equal priorities take turns. It is open now. The last
  /// one of an area is for cleaning, which makes free ones of it.
  func takeSegment(cleaning: Bool = false) -> (area: Int, segment: UInt32)? {
    lock.lock()
    defer { lock.unlock() }
    var chosen: Int?
    for area in 0..<AreaPlace.maximumAreas where takesWrites(area) && hasFree(area, cleaning) {
      guard let best = chosen else {
        chosen = area
        continue
      }
      let (mine, other) = (priority(area), priority(best))
      if mine > other || (mine == other && allocations[area].turn < allocations[best].turn) { chosen = area }
    }
    guard let chosen else { return nil }
    turns.pointee += 1
    allocations[chosen].turn = turns.pointee
    return (chosen, open(chosen))
  }

  /// Whether `takeSegment` would find one.
  var hasRoom: Bool {
    lock.lock()
    defer { lock.unlock() }
    return (0..<AreaPlace.maximumAreas).contains { takesWrites($0) && (hasFree($0, false) || hasEmpty($0)) }
  }

  /// Whether an active area has an eighth of its segments free.
  var hasAmpleRoom: Bool {
    (0..<AreaPlace.maximumAreas).contains { takesWrites($0) && freeBytes($0) >= bytes($0) / 8 }
  }

  func identity(_ area: Int) -> UInt64 { header(area).pointee.identity.load(ordering: .relaxed) }
  func priority(_ area: Int) -> Int32 { header(area).pointee.priority.load(ordering: .relaxed) }

  private func hasFree(_ area: Int, _ cleaning: Bool) -> Bool {
    freeBytes(area) > (cleaning ? 0 : AreaPlace.segmentBytes)
  }

  private func hasEmpty(_ area: Int) -> Bool {
    UInt32(truncatingIfNeeded: header(area).pointee.emptyHead.load(ordering: .relaxed)) != 0
  }

  /// Under the lock, with a free one there.
  private func open(_ area: Int) -> UInt32 {
    let segment: UInt32
    if allocations[area].freeHead != 0 {
      segment = allocations[area].freeHead
      allocations[area].freeHead = UInt32(record(area, segment).pointee.load(ordering: .relaxed) & Self.linkMask)
    } else {
      segment = allocations[area].fresh
      allocations[area].fresh += 1
    }
    let generation = Self.generation(record(area, segment).pointee.load(ordering: .relaxed)) &+ 1
    record(area, segment).pointee.store(Self.word(generation, .open, low: 0), ordering: .relaxed)
    header(area).pointee.used.add(1, ordering: .relaxed)
    header(area).pointee.open.add(1, ordering: .relaxed)
    return segment
  }

  /// Counts the lives of a segment: part of what its objects are checked with.
  func generation(_ area: Int, _ segment: UInt32) -> UInt32 {
    Self.generation(record(area, segment).pointee.load(ordering: .acquiring))
  }

  /// An open segment was written: its objects may be named from now on, and count as alive.
  func seal(_ area: Int, _ segment: UInt32, objects: Int, units: Int) {
    assert(objects > 0)
    let word = record(area, segment).pointee.load(ordering: .relaxed)
    assert(Self.state(word) == .open)
    header(area).pointee.pausedUntil.store(0, ordering: .relaxed)
    header(area).pointee.liveObjects.add(objects, ordering: .relaxed)
    header(area).pointee.liveUnits.add(units, ordering: .relaxed)
    Interleaving.point()
    let sealed = Self.word(Self.generation(word), .sealed, low: UInt64(objects) << 13 | UInt64(units))
    record(area, segment).pointee.store(sealed, ordering: .releasing)
    header(area).pointee.open.subtract(1, ordering: .releasing)
  }

  /// An open segment could not be written.
  func giveUp(_ area: Int, _ segment: UInt32) {
    lock.lock()
    defer { lock.unlock() }
    free(area, segment)
    header(area).pointee.open.subtract(1, ordering: .releasing)
  }

  /// Under the lock.
  private func free(_ area: Int, _ segment: UInt32) {
    let generation = Self.generation(record(area, segment).pointee.load(ordering: .relaxed))
    let link = UInt64(allocations[area].freeHead)
    record(area, segment).pointee.store(Self.word(generation, .free, low: link), ordering: .relaxed)
    allocations[area].freeHead = segment
    header(area).pointee.used.subtract(1, ordering: .relaxed)
  }

  /// No word names the object any more. Lock-free: faults end here.
  func release(_ place: AreaPlace) {
    let change = Self.oneObject | UInt64(place.units)
    header(place.area).pointee.liveUnits.subtract(place.units, ordering: .relaxed)
    let (_, word) = record(place.area, place.segment).pointee.wrappingSubtract(change, ordering: .acquiringAndReleasing)
    Interleaving.point()
    // Who took the last one away is alone with the segment.
    if Self.live(word) == 0 { push(place.area, place.segment, word) }
    Interleaving.point()
    // Last, since an area without live objects may be removed.
    header(place.area).pointee.liveObjects.subtract(1, ordering: .releasing)
  }

  private func push(_ area: Int, _ segment: UInt32, _ word: UInt64) {
    assert(Self.state(word) == .sealed)
    let head = header(area)
    var old = head.pointee.emptyHead.load(ordering: .relaxed)
    while true {
      let link = old & Self.linkMask
      record(area, segment).pointee.store(Self.word(Self.generation(word), .empty, low: link), ordering: .relaxed)
      Interleaving.point()
      let new = (old >> 32 &+ 1) << 32 | UInt64(segment)
      let (done, found) = head.pointee.emptyHead.weakCompareExchange(
        expected: old, desired: new, successOrdering: .releasing, failureOrdering: .relaxed)
      if done { return }
      old = found
    }
  }

  /// Takes one empty segment; its storage may be discarded before `freed`.
  func nextEmpty(_ area: Int) -> UInt32? {
    let head = header(area)
    var old = head.pointee.emptyHead.load(ordering: .acquiring)
    while true {
      let segment = UInt32(truncatingIfNeeded: old)
      if segment == 0 { return nil }
      // Popped by one thread only, the writer; pushes change the tag.
      let link = record(area, segment).pointee.load(ordering: .relaxed) & Self.linkMask
      Interleaving.point()
      let (done, found) = head.pointee.emptyHead.weakCompareExchange(
        expected: old, desired: (old >> 32 &+ 1) << 32 | link, successOrdering: .acquiring, failureOrdering: .acquiring)
      if done { return segment }
      old = found
    }
  }

  /// What `nextEmpty` gave may be taken again.
  func freed(_ area: Int, _ segment: UInt32) {
    lock.lock()
    defer { lock.unlock() }
    free(area, segment)
  }

  /// The next sealed segment from `first` on, in the order of the area. nil: there is none.
  func nextSealed(_ area: Int, from first: UInt32) -> (segment: UInt32, live: Int)? {
    lock.lock()
    let end = allocations[area].fresh
    lock.unlock()
    var segment = max(1, first)
    while segment < end {
      let word = record(area, segment).pointee.load(ordering: .acquiring)
      if Self.state(word) == .sealed && Self.live(word) > 0 { return (segment, Self.live(word)) }
      segment += 1
    }
    return nil
  }

  /// The sealed segments with the least alive in them, sparsest first: at most `count`, of at most `units` each. Looks at `looks` segments
  /// from a cursor on.
  func sparsest(
    _ area: Int, atMost units: Int, count: Int, cursor: inout UInt32, looks: Int
  ) -> [(segment: UInt32, units: Int)] {
    lock.lock()
    let end = allocations[area].fresh
    lock.unlock()
    var found: [(segment: UInt32, units: Int)] = []
    for _ in 0..<min(looks, Int(end) - 1) {
      cursor = cursor + 1 < end ? cursor + 1 : 1
      let word = record(area, cursor).pointee.load(ordering: .acquiring)
      guard Self.state(word) == .sealed, Self.live(word) > 0, Self.units(word) <= units else { continue }
      if found.count == count {
        if Self.units(word) >= found[count - 1].units { continue }
        found.removeLast()
      }
      let place = found.firstIndex { $0.units > Self.units(word) } ?? found.count
      found.insert((cursor, Self.units(word)), at: place)
    }
    return found
  }
}
