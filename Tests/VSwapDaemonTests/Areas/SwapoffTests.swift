import Testing

@testable import VSwapDaemon

@Suite struct SwapoffTests {
  /// What others still write to the area is waited for: its segments are neither forgotten nor left behind.
  @Test func theWritesOfOthersAreWaitedFor() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    let slots = try bench.fillPool(pages: 40)
    // Such as the writer of another area's swapoff, which has not got to its end.
    let storage = FakeStorage(disk: bench.disk, depth: 1, seed: 1)
    let writer = SegmentWriter(layer: bench.layer, storage: storage, buffers: 0..<1)
    for slot in slots { try bench.append(slot, to: writer) }
    bench.layer.areas.setRotation(area, .draining)
    let swapoff = try bench.swapoff(area)
    var questions = 0
    let isEmpty = try swapoff.run(workers: 2) { _ in
      questions += 1
      if questions == 5 {
        #expect(bench.layer.areas.figures(area).liveObjects == 0)
        writer.drain()
        #expect(bench.layer.areas.figures(area).liveObjects == 40)
      }
      return questions < 10_000
    }
    #expect(isEmpty && questions >= 5 && swapoff.tally.toPool == 40)
    bench.layer.areas.remove(area)
    for slot in slots { #expect(bench.reads(slot)) }
  }

  /// It can be cancelled while there is nothing to read.
  @Test func waitingCanBeCancelled() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    let (_, segment) = try #require(bench.layer.areas.takeSegment())
    bench.layer.areas.setRotation(area, .draining)
    var questions = 0
    let isEmpty = try bench.swapoff(area).run(workers: 1) { _ in
      questions += 1
      return questions < 7
    }
    #expect(!isEmpty && questions == 7)
    bench.layer.areas.giveUp(area, segment)
    #expect(bench.layer.areas.isVacant(area))
  }

  /// Of what a cancelled one has read, each worker moves what it has begun with, and no more.
  @Test func cancellingReachesTheWorkers() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    let slots = try bench.fillPool(pages: 1000)
    let storage = FakeStorage(disk: bench.disk, depth: 2, seed: 1)
    let writer = SegmentWriter(layer: bench.layer, storage: storage, buffers: 0..<2)
    for slot in slots { try bench.append(slot, to: writer) }
    writer.drain()
    bench.layer.areas.setRotation(area, .draining)
    bench.room = 1000
    bench.isSlow = true
    let isEmpty = try bench.swapoff(area).run(workers: 2) { _ in
      // One of them is at it: it gets its answer once nobody wants more.
      if !bench.isDelivering { return true }
      bench.release()
      return false
    }
    #expect(!isEmpty && bench.deliveries <= 2)
    bench.room = 0
    #expect(try bench.swapoff(area).run(workers: 2) { _ in true })
    for slot in slots { #expect(bench.reads(slot)) }
  }

  /// A target that does not answer keeps its batch, and its pages go to the pool as they are.
  @Test func pagesOfATargetThatDoesNotAnswerGoToThePool() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    let slots = try bench.fillPool(pages: 300)
    let storage = FakeStorage(disk: bench.disk, depth: 2, seed: 1)
    let writer = SegmentWriter(layer: bench.layer, storage: storage, buffers: 0..<2)
    for slot in slots { try bench.append(slot, to: writer) }
    writer.drain()
    bench.layer.areas.setRotation(area, .draining)
    bench.room = 1000
    bench.isSilent = true
    let swapoff = try bench.swapoff(area)
    #expect(try swapoff.run(workers: 2) { _ in true })
    #expect(swapoff.tally.toPool == 300 && swapoff.tally.toTarget == 0)
    // Nobody writes into what the target may still look at.
    #expect(bench.kept.count >= 5 && bench.keptIsAsGiven)
    for slot in slots { #expect(bench.reads(slot)) }
  }

  /// A write to the other area fails on the way: nothing is lost, and it comes to an end.
  @Test func aFailedWriteLeavesThePagesWhereTheyAre() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    let slots = try bench.fillPool(pages: 300)
    let storage = FakeStorage(disk: bench.disk, depth: 2, seed: 1)
    let writer = SegmentWriter(layer: bench.layer, storage: storage, buffers: 0..<2)
    for slot in slots { try bench.append(slot, to: writer) }
    writer.drain()
    #expect(bench.layer.areas.figures(area).liveObjects == 300)
    let other = try bench.add()
    bench.layer.areas.setRotation(area, .draining)
    bench.layer.setPoolLimit(bytes: 0)
    bench.disk.setRates(FaultRates(failedWrites: 1))
    #expect(try !bench.swapoff(area, writing: FakeStorage(disk: bench.disk, depth: 2, seed: 2)).run(workers: 2) { _ in true })
    #expect(bench.layer.areas.rotation(other) == .faulty && bench.layer.areas.isVacant(other))
    #expect(bench.layer.areas.figures(area).liveObjects == 300)
    // Repaired, and tried again.
    bench.disk.setRates(FaultRates())
    bench.layer.areas.setRotation(other, .active)
    #expect(try bench.swapoff(area, writing: FakeStorage(disk: bench.disk, depth: 2, seed: 3)).run(workers: 2) { _ in true })
    #expect(bench.layer.areas.isVacant(area) && bench.layer.areas.figures(other).liveObjects == 300)
    for slot in slots { #expect(bench.reads(slot)) }
  }
}

/// A slot layer whose pages are functions of their slots' numbers.
final class SwapoffBench: PageSink, @unchecked Sendable {
  let layer: SlotLayer
  let disk = FakeDisk(seed: 1)
  /// Pages that each target takes.
  var room = 0
  /// Its targets have not answered, and keep what they were given.
  var isSilent = false
  /// They take their time: until `release`.
  var isSlow = false
  private let answers = Promise<Bool>()
  private let lock = Lock.create()
  private(set) var deliveries = 0
  private(set) var kept: [(batch: PageBatch, sum: UInt64)] = []
  private let page = TestPage()
  private let scratch = TestPage()
  private let codec = try! Codec.create()
  private let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)

  init() throws {
    layer = try SlotLayer.create(maximumSlots: 2000, cacheFrames: 8, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 26)
  }

  func destroy() {
    layer.destroy()
    lock.destroy()
    page.destroy()
    scratch.destroy()
    codec.destroy()
    buffer.deallocate()
  }

  func add() throws -> Int {
    try #require(try layer.areas.add(bytes: 20 * AreaPlace.segmentBytes, priority: 0, identity: 77))
  }

  func fillPool(pages: Int) throws -> [SlotNumber] {
    try (1...pages).map { number in
      page.fill(key: UInt64(number) << 4 | 2)
      let slot = try #require(layer.store(page: page.bytes, target: 1, virtualPage: UInt64(number)))
      #expect(layer.compressOldest(codec: codec) == .compressed)
      return slot
    }
  }

  func append(_ slot: SlotNumber, to writer: SegmentWriter) throws {
    #expect(layer.retain(slot))
    let (word, length) = try #require(layer.copyFromPool(slot, into: buffer))
    #expect(writer.append(slot, from: word, buffer, length: length))
  }

  func swapoff(_ area: Int, writing: FakeStorage? = nil) throws -> Swapoff {
    let reading = FakeStorage(disk: disk, depth: 4, seed: 5)
    let swapoff = try Swapoff(layer: layer, area: area, storage: reading, writing: writing, sink: self)
    swapoff.interval = 0
    swapoff.patience = 100_000_000
    return swapoff
  }

  func reads(_ slot: SlotNumber) -> Bool {
    switch layer.load(slot, into: page.bytes, codec: codec) {
    case .zero, .cached, .pool: break
    case .lost: return false
    case .area(let word):
      let place = word.place
      let start = Int(place.segment) * AreaPlace.segmentBytes
      guard disk.read(area: place.area, offset: start, length: AreaPlace.segmentBytes, into: buffer),
        let content = layer.content(of: buffer + (place.offset - start), slot, word),
        layer.unpack(content, into: page.bytes, codec: codec)
      else { return false }
    }
    return page.holds(key: UInt64(slot) << 4 | 2, scratch: scratch)
  }

  var isDelivering: Bool {
    lock.lock()
    defer { lock.unlock() }
    return deliveries > 0
  }

  func release() { answers.fulfil(true) }

  var keptIsAsGiven: Bool { kept.allSatisfy { Self.sum($0.batch) == $0.sum } }

  private static func sum(_ batch: PageBatch) -> UInt64 {
    let words = batch.content.assumingMemoryBound(to: UInt64.self)
    return (0..<batch.items.count * pageSize / 8).reduce(0) { ($0 &* 31) &+ words[$1] }
  }

  func room(target: UInt32) -> Int { room }
  func totalRoom() -> Int { 0 }
  func deliver(_ batch: PageBatch) -> Bool {
    lock.lock()
    deliveries += 1
    if isSilent { kept.append((batch, Self.sum(batch))) }
    lock.unlock()
    if isSlow { _ = answers.wait() }
    return !isSilent
  }
  func deliverToAll(_ batch: PageBatch) -> Bool { true }
  func filesChanged() {}
  func dropCopies() {}
}
