import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct ReadAheadTests {
  @Test func aWindowHasWhatItsPagesHold() throws {
    var bench = try Bench()
    defer { bench.destroy() }
    let pages = UInt64(ReadAheadWindow.pages)
    try bench.fill(0..<pages)
    #expect(bench.window.post(from: 0, bench.table, to: bench.workers) == Int(pages))
    #expect(bench.window.holds(0) && bench.window.holds(pages - 1) && !bench.window.holds(pages))
    var page: UInt64 = 0
    while page < pages {
      let (count, isRight) = bench.takeWhenReady(page, atMost: 5)
      #expect(count == min(5, Int(pages - page)) && isRight)
      page += UInt64(count)
    }
    #expect(bench.isGivenUp())
  }

  @Test func aHoleEndsAWindow() throws {
    var bench = try Bench()
    defer { bench.destroy() }
    try bench.fill(0..<4)
    try bench.fill(5..<10)
    #expect(bench.window.post(from: 0, bench.table, to: bench.workers) == 4)
    #expect(bench.window.end == 4 && !bench.window.holds(4))
    #expect(bench.takeWhenReady(2, atMost: 10) == (2, true))
    #expect(bench.isGivenUp())
    #expect(bench.window.post(from: 4, bench.table, to: bench.workers) == 0 && bench.window.isEmpty)
  }

  /// The page was discarded and evicted again after the window was posted.
  @Test func whatWasReplacedIsNotTaken() throws {
    var bench = try Bench()
    defer { bench.destroy() }
    try bench.fill(0..<8)
    #expect(bench.window.post(from: 0, bench.table, to: bench.workers) == 8)
    #expect(bench.takeWhenReady(0, atMost: 1) == (1, true))
    bench.generation = 1
    try bench.fill(3..<4)
    #expect(bench.takeWhenReady(1, atMost: 10) == (2, true))
    #expect(bench.takeWhenReady(3, atMost: 10).count == 0)
    #expect(bench.isGivenUp())
  }

  @Test(arguments: [1, 2, 3] as [UInt64])
  func nothingStaleWhateverHappensMeanwhile(seed: UInt64) throws {
    var bench = try Bench()
    defer { bench.destroy() }
    var random = SeededRandom(seed: seed)
    for round in 0..<2000 {
      bench.generation = UInt64(round)
      try bench.fill(0..<40)
      guard bench.window.clear() else { continue }
      _ = bench.window.post(from: random.next() % 4, bench.table, to: bench.workers)
      // Slots are released and used again while the worker goes through them.
      for _ in 0..<random.next() % 6 {
        bench.generation &+= 1 << 32
        let page = random.next() % 40
        try bench.fill(page..<page + 1)
      }
      let page = random.next() % 36
      if bench.window.holds(page) { #expect(bench.take(page, atMost: 8).isRight, "seed \(seed), round \(round)") }
    }
  }
}

private struct Bench {
  let layer: SlotLayer
  let codec = try! Codec.create()
  let workers: Unpackers
  let window: ReadAheadWindow
  let arena: ChunkArena
  var table: PageTable
  /// What is filled in gets a content of its own per generation.
  var generation: UInt64 = 0
  private var keys = [UInt64](repeating: 0, count: 64)
  private let page = TestPage()
  private let scratch = TestPage()

  init() throws {
    layer = try SlotLayer.create(
      maximumSlots: 200, cacheFrames: 200, poolReserveBytes: 1 << 30, poolLimitBytes: 16 << 20)
    workers = try Unpackers.create(workers: 2, layer: layer)
    try workers.start()
    window = try ReadAheadWindow.create(layer: layer)
    arena = try ChunkArena.create(maximumChunks: 16)
    table = try PageTable.create(arena: arena)
  }

  mutating func destroy() {
    window.destroy()
    table.destroy(layer: layer)
    #expect(layer.statistics().slotsInUse == 0)
    arena.destroy()
    layer.destroy()
    codec.destroy()
    page.destroy()
    scratch.destroy()
  }

  /// Evicts pages; half of them are compressed.
  mutating func fill(_ pages: Range<UInt64>) throws {
    for number in pages {
      let old = table.entry(number)
      keys[Int(number)] = generation &* 64 &+ number
      page.fill(key: keys[Int(number)])
      let slot = try #require(layer.store(page: page.bytes, target: 1, virtualPage: number))
      let isSet = table.set(number, slot)
      #expect(isSet)
      if PageTableEntry.isSlot(old) { layer.release(old) }
      if number % 2 == 0 { _ = layer.compressOldest(codec: codec) }
    }
  }

  /// A page that a worker is at cannot be taken; how long it is depends on the machine.
  func takeWhenReady(_ first: UInt64, atMost most: Int) -> (count: Int, isRight: Bool) {
    while window.isPosted { usleep(100) }
    return take(first, atMost: most)
  }

  /// How many pages came, and whether each has the content it was last filled with.
  func take(_ first: UInt64, atMost most: Int) -> (count: Int, isRight: Bool) {
    guard let found = window.take(first, atMost: most, table, codec: codec) else { return (0, true) }
    var isRight = true
    for index in 0..<found.count {
      scratch.fill(key: keys[Int(first) + index])
      if memcmp(found.content + index * pageSize, scratch.bytes, pageSize) != 0 { isRight = false }
    }
    window.passed(first, found.count)
    return (found.count, isRight)
  }

  /// All that the window held on to is released, at the latest when its worker is through.
  func isGivenUp() -> Bool {
    while !window.clear() { usleep(100) }
    return layer.statistics().slotsInUse == table.slotCount
  }
}
