import Glibc
import Synchronization

@testable import VSwapDaemon

/// How often what goes wrong: one in so many times; 0 is never.
struct FaultRates {
  /// A write that says so; nothing, or part of the segment, was written.
  var failedWrites = 0
  /// A write that says it is complete, and left some pages out.
  var lostWrites = 0
  /// A read of a segment, or of an object, that fails once.
  var failedReads = 0
}

/// The disks of all areas of a test, in memory: segments that were written, and what was done to them. Any thread may call.
final class FakeDisk: @unchecked Sendable {
  private struct Place: Hashable {
    var area: Int
    var segment: UInt32
  }

  private struct Segment {
    var bytes: [UInt8]
    /// Byte ranges that are not what was written last.
    var damage: [Range<Int>] = []
    /// Pages that cannot be read.
    var unreadable: Set<Int> = []
  }

  private let lock = Lock.create()
  private var random: SeededRandom
  private var segments: [Place: Segment] = [:]
  private var rates: FaultRates
  private var writesDone = 0
  /// Whether writes find no room.
  let isFull = Atomic<Bool>(false)

  init(seed: UInt64, rates: FaultRates = FaultRates()) {
    random = SeededRandom(seed: seed)
    self.rates = rates
  }

  deinit { lock.destroy() }

  /// Segments that were written completely.
  var writes: Int {
    lock.lock()
    defer { lock.unlock() }
    return writesDone
  }

  func setRates(_ rates: FaultRates) {
    lock.lock()
    self.rates = rates
    lock.unlock()
  }

  private func happens(_ rate: Int) -> Bool { rate > 0 && random.below(rate) == 0 }

  /// Returns whether the disk says that all was written.
  func write(area: Int, segment: UInt32, _ bytes: [UInt8]) -> Bool {
    precondition(segment > 0, "the signature was overwritten")
    lock.lock()
    defer { lock.unlock() }
    let place = Place(area: area, segment: segment)
    let old = segments[place]?.bytes ?? [UInt8](repeating: 0, count: AreaPlace.segmentBytes)
    var new = Segment(bytes: bytes)
    let fails = happens(rates.failedWrites)
    if fails || happens(rates.lostWrites) {
      for page in 0..<AreaPlace.segmentBytes / pageSize where random.below(fails ? 2 : 8) == 0 {
        let range = page * pageSize..<(page + 1) * pageSize
        new.bytes.replaceSubrange(range, with: old[range])
        new.damage.append(range)
      }
    }
    segments[place] = new
    if !fails { writesDone += 1 }
    return !fails
  }

  /// Whole pages within a segment. false: it failed, and what is there now means nothing. `patiently`: only if it cannot be read at all.
  func read(area: Int, offset: Int, length: Int, into: UnsafeMutableRawPointer, patiently: Bool = false) -> Bool {
    precondition(offset % pageSize == 0 && length % pageSize == 0)
    lock.lock()
    defer { lock.unlock() }
    memset(into, 0xA5, length)
    let place = Place(area: area, segment: UInt32(offset / AreaPlace.segmentBytes))
    let first = offset % AreaPlace.segmentBytes
    precondition(first + length <= AreaPlace.segmentBytes)
    guard let segment = segments[place] else {
      memset(into, 0, length)
      return true
    }
    let fails =
      !segment.unreadable.isDisjoint(with: first / pageSize..<(first + length) / pageSize)
      || (!patiently && happens(rates.failedReads))
    let count = fails ? random.below(length) : length
    segment.bytes.withUnsafeBytes { into.copyMemory(from: $0.baseAddress! + first, byteCount: count) }
    return !fails
  }

  func discard(area: Int, segment: UInt32) {
    lock.lock()
    segments[Place(area: area, segment: segment)] = nil
    lock.unlock()
  }

  func remove(area: Int) {
    lock.lock()
    segments = segments.filter { $0.key.area != area }
    lock.unlock()
  }

  // MARK: Damage

  /// Flips one bit, makes a page unreadable, overwrites a page, or cuts everything behind a random byte off.
  func harm(area: Int) {
    lock.lock()
    defer { lock.unlock() }
    let written = segments.keys.filter { $0.area == area }.sorted { $0.segment < $1.segment }
    guard let place = written.randomElement(using: &random) else { return }
    let byte = random.below(AreaPlace.segmentBytes)
    let page = byte / pageSize
    switch random.below(16) {
    case 0...8:
      segments[place]!.bytes[byte] ^= 1 << UInt8(random.below(8))
      segments[place]!.damage.append(byte..<byte + 1)
    case 9...11: segments[place]!.unreadable.insert(page)
    // The reverse map is in the first ones.
    case 12: segments[place]!.unreadable.insert(0)
    case 13, 14: overwrite(place, page * pageSize..<(page + 1) * pageSize)
    default:
      overwrite(place, byte..<AreaPlace.segmentBytes)
      for other in written where other.segment > place.segment { overwrite(other, 0..<AreaPlace.segmentBytes) }
    }
  }

  func makeUnreadable(area: Int, segment: UInt32, page: Int) {
    lock.lock()
    segments[Place(area: area, segment: segment)]!.unreadable.insert(page)
    lock.unlock()
  }

  private func overwrite(_ place: Place, _ range: Range<Int>) {
    segments[place]!.bytes.replaceSubrange(range, with: [UInt8](repeating: 0, count: range.count))
    segments[place]!.damage.append(range)
  }

  /// Whether any of these bytes is not what was written there last.
  func isDamaged(_ place: AreaPlace) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    guard let segment = segments[Place(area: place.area, segment: place.segment)] else { return false }
    let first = place.offset % AreaPlace.segmentBytes
    let range = first..<first + place.bytes
    return segment.damage.contains { $0.overlaps(range) }
      || segment.unreadable.contains { ($0 * pageSize..<($0 + 1) * pageSize).overlaps(range) }
  }
}

/// Segments on a fake disk: operations complete in random order, after random numbers of looks. For one thread.
final class FakeStorage: SegmentStorage, @unchecked Sendable {
  private struct Operation {
    var isWrite: Bool
    var area: Int
    var segment: UInt32
    var buffer: Int
    /// Looks until it completes.
    var looks: Int
    /// The first half of what is written leaves the buffer at once, the rest at the end.
    var early: [UInt8]
  }

  let depth: Int
  private let disk: FakeDisk
  private let memory: UnsafeMutableRawPointer
  private let longest: Int
  private var random: SeededRandom
  private var underWay: [Operation] = []

  init(disk: FakeDisk, depth: Int, seed: UInt64, longestDelay: Int = 6) {
    self.disk = disk
    self.depth = depth
    longest = longestDelay
    random = SeededRandom(seed: seed)
    memory = .allocate(byteCount: depth * AreaPlace.segmentBytes, alignment: pageSize)
    memory.initializeMemory(as: UInt8.self, repeating: 0x5A, count: depth * AreaPlace.segmentBytes)
  }

  deinit {
    precondition(underWay.isEmpty, "operations were left under way")
    memory.deallocate()
  }

  var operations: Int { underWay.count }

  func buffer(_ index: Int) -> UnsafeMutableRawPointer {
    precondition((0..<depth).contains(index))
    return memory + index * AreaPlace.segmentBytes
  }

  func write(area: Int, segment: UInt32, buffer: Int) { start(true, area, segment, buffer) }
  func read(area: Int, segment: UInt32, buffer: Int) { start(false, area, segment, buffer) }

  private func start(_ isWrite: Bool, _ area: Int, _ segment: UInt32, _ buffer: Int) {
    precondition(!underWay.contains { $0.buffer == buffer }, "a buffer is used twice")
    precondition(!underWay.contains { $0.area == area && $0.segment == segment && ($0.isWrite || isWrite) })
    let half = UnsafeRawBufferPointer(start: self.buffer(buffer), count: AreaPlace.segmentBytes / 2)
    underWay.append(
      Operation(
        isWrite: isWrite, area: area, segment: segment, buffer: buffer, looks: random.below(longest + 1),
        early: isWrite ? Array(half) : []))
    if !isWrite { memset(self.buffer(buffer), 0xA5, AreaPlace.segmentBytes) }
  }

  func completed(wait: Bool) -> (buffer: Int, outcome: SegmentOutcome)? {
    for index in underWay.indices { underWay[index].looks -= 1 }
    let ready = underWay.indices.filter { underWay[$0].looks <= 0 || wait }
    guard let chosen = ready.randomElement(using: &random) else { return nil }
    let operation = underWay.remove(at: chosen)
    return (operation.buffer, finish(operation))
  }

  private func finish(_ operation: Operation) -> SegmentOutcome {
    let buffer = buffer(operation.buffer)
    guard operation.isWrite else {
      let isComplete = disk.read(
        area: operation.area, offset: Int(operation.segment) * AreaPlace.segmentBytes, length: AreaPlace.segmentBytes,
        into: buffer)
      return isComplete ? .complete : .failed
    }
    if disk.isFull.load(ordering: .relaxed) { return .noRoom }
    let half = AreaPlace.segmentBytes / 2
    let isComplete = disk.write(
      area: operation.area, segment: operation.segment,
      operation.early + UnsafeRawBufferPointer(start: buffer + half, count: half))
    return isComplete ? .complete : .failed
  }

  func readPieces(area: Int, segment: UInt32, buffer: Int) {
    for offset in stride(from: 0, to: AreaPlace.segmentBytes, by: pageSize) {
      let piece = self.buffer(buffer) + offset
      let start = Int(segment) * AreaPlace.segmentBytes + offset
      if !disk.read(area: area, offset: start, length: pageSize, into: piece, patiently: true) { memset(piece, 0, pageSize) }
    }
  }

  func refresh() {}

  func discard(area: Int, segment: UInt32) { disk.discard(area: area, segment: segment) }
}
