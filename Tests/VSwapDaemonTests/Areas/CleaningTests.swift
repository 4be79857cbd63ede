import Testing

@testable import VSwapDaemon

@Suite struct CleaningTests {
  /// One sparse segment alone cannot be cleaned: what is in it needs a segment. It must not be tried again and again.
  @Test func whatGainsNothingIsLeftAlone() throws {
    let bench = try CleaningBench(segments: 20)
    defer { bench.destroy() }
    try bench.fill()
    bench.thin(bench.sealed[2], keeping: 10)
    let writes = bench.disk.writes
    for _ in 0..<20 { bench.clean() }
    #expect(bench.disk.writes == writes)
    #expect(bench.allReadBack())
  }

  @Test func sparseSegmentsAreGathered() throws {
    let bench = try CleaningBench(segments: 20)
    defer { bench.destroy() }
    try bench.fill()
    for segment in bench.sealed { bench.thin(segment, keeping: 20) }
    let writes = bench.disk.writes
    for _ in 0..<20 { bench.clean() }
    // Up to an eighth of the area, and then no more.
    #expect(bench.disk.writes - writes <= 3)
    #expect(bench.layer.areas.freeBytes(bench.area) >= bench.layer.areas.bytes(bench.area) / 8)
    #expect(bench.allReadBack())
  }

  /// Half full ones, and just the one segment that is kept for it: bit by bit.
  @Test func theReserveIsEnough() throws {
    let bench = try CleaningBench(segments: 20)
    defer { bench.destroy() }
    try bench.fill()
    for segment in bench.sealed { bench.thin(segment, keeping: bench.perSegment * 55 / 100) }
    for _ in 0..<20 { bench.clean() }
    #expect(bench.layer.areas.freeBytes(bench.area) >= bench.layer.areas.bytes(bench.area) / 8)
    #expect(bench.allReadBack())
  }

  /// A segment that cannot be read stays as it is, and others are cleaned.
  @Test func anUnreadableSegmentIsPassedOver() throws {
    let bench = try CleaningBench(segments: 20)
    defer { bench.destroy() }
    try bench.fill()
    bench.thin(bench.sealed[1], keeping: 3)
    bench.disk.makeUnreadable(area: bench.area, segment: bench.sealed[1], page: 17)
    for segment in bench.sealed.dropFirst(2) { bench.thin(segment, keeping: 20) }
    for _ in 0..<20 { bench.clean() }
    #expect(bench.layer.areas.freeBytes(bench.area) >= bench.layer.areas.bytes(bench.area) / 8)
    #expect(bench.layer.areas.figures(bench.area).readErrors == 1)
    // Not one of its pages was given up.
    #expect(bench.layer.statistics().lostPages == 0)
  }
}

/// An area full of segments, all sealed.
private final class CleaningBench {
  let layer: SlotLayer
  let disk = FakeDisk(seed: 1)
  let area: Int
  private let writeback: Writeback
  private var work: Writeback.Work
  private let page = TestPage()
  private let scratch = TestPage()
  private let codec = try! Codec.create()
  private let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)
  private var slots: Set<SlotNumber> = []

  init(segments: Int) throws {
    layer = try SlotLayer.create(maximumSlots: 5000, cacheFrames: 8, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 26)
    writeback = try Writeback(layer: layer, budget: layer.budget)
    work = Writeback.Work(
      layer: layer, writing: FakeStorage(disk: disk, depth: 2, seed: 1), cleaning: FakeStorage(disk: disk, depth: 1, seed: 2))
    area = try layer.areas.add(bytes: segments * AreaPlace.segmentBytes, priority: 0, identity: 5)!
    layer.enableWriteback()
  }

  func destroy() {
    layer.destroy()
    page.destroy()
    scratch.destroy()
    codec.destroy()
    buffer.deallocate()
  }

  var sealed: [UInt32] {
    var found: [UInt32] = []
    while let next = layer.areas.nextSealed(area, from: (found.last ?? 0) + 1) { found.append(next.segment) }
    return found
  }

  /// Objects of a full segment.
  var perSegment: Int { AreaPlace.unitsPerSegment / 40 }

  func fill() throws {
    for number in 1... {
      page.fill(key: UInt64(number) << 4 | 2)
      guard let slot = layer.store(page: page.bytes, target: 1, virtualPage: UInt64(number)) else { break }
      _ = layer.compressOldest(codec: codec)
      guard let oldest = layer.oldestInPool(), let (word, length) = layer.copyFromPool(oldest, into: buffer) else { break }
      slots.insert(slot)
      guard work.writer.append(oldest, from: word, buffer, length: length) else {
        layer.release(oldest)
        layer.release(slot)
        slots.remove(slot)
        break
      }
    }
    work.writer.drain()
    #expect(layer.areas.freeBytes(area) == AreaPlace.segmentBytes)
  }

  func thin(_ segment: UInt32, keeping: Int) {
    let inside = slots.sorted().filter {
      let word = layer.table.word($0)
      return word.kind == .area && word.place.segment == segment
    }
    for slot in inside.dropFirst(keeping) {
      layer.release(slot)
      slots.remove(slot)
    }
  }

  func clean() { writeback.clean(&work) }

  func allReadBack() -> Bool {
    slots.allSatisfy { slot in
      guard case .area(let word) = layer.load(slot, into: page.bytes, codec: codec),
        disk.read(
          area: area, offset: Int(word.place.segment) * AreaPlace.segmentBytes, length: AreaPlace.segmentBytes, into: buffer),
        let content = layer.content(of: buffer + word.place.unitInSegment * AreaPlace.unit, slot, word),
        layer.unpack(content, into: page.bytes, codec: codec)
      else { return false }
      return page.holds(key: UInt64(slot) << 4 | 2, scratch: scratch)
    }
  }
}
