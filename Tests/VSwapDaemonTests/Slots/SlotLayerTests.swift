import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct SlotLayerTests {
  @Test func aPageGoesThroughAllItsBackings() throws {
    let bench = try Bench(slots: 10, frames: 4, poolLimit: 1 << 20)
    defer { bench.destroy() }
    let zero = try #require(bench.store(key: 16))
    let text = try #require(bench.store(key: 5))
    let noise = try #require(bench.store(key: 17))
    #expect(bench.load(zero, key: 16) == .zero)
    #expect(bench.load(text, key: 5) == .cached && bench.load(noise, key: 17) == .cached)
    #expect(bench.layer.cachedPages == 2 && bench.layer.zeroPages == 1 && bench.layer.freeFrames == 2)
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.load(text, key: 5) == .pool && bench.load(noise, key: 17) == .cached)
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.load(noise, key: 17) == .pool)
    #expect(bench.layer.compressOldest(codec: bench.codec) == .nothing)
    let figures = bench.layer.statistics()
    #expect(figures.objects == 2 && figures.originalBytes == 8192 && figures.slotsInUse == 3)
    #expect(figures.compressedBytes > 4096 && figures.compressedBytes < 8192)
    #expect(figures.arenaBytes == 2 * CompressedPool.blockSize && figures.cacheCapacityPages == 4)
    for slot in [zero, text, noise] { bench.layer.release(slot) }
    #expect(bench.isEmpty())
  }

  @Test func fullCachesAndTablesRefuse() throws {
    let bench = try Bench(slots: 3, frames: 2, poolLimit: 1 << 20)
    defer { bench.destroy() }
    let first = try #require(bench.store(key: 5))
    #expect(bench.store(key: 6) != nil)
    #expect(bench.store(key: 7) == nil, "no frame")
    #expect(bench.store(key: 0) != nil)
    bench.layer.release(first)
    #expect(bench.store(key: 7) != nil)
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.store(key: 8) == nil && bench.store(key: 0) == nil, "no slot")
    #expect(bench.layer.freeFrames == 1)
  }

  @Test func aRefaultedPageIsNotCompressed() throws {
    let bench = try Bench(slots: 10, frames: 2, poolLimit: 1 << 20)
    defer { bench.destroy() }
    for round in 0..<UInt64(100) {
      let slot = try #require(bench.store(key: round * 16 + 3))
      bench.layer.release(slot)
    }
    #expect(bench.layer.compressOldest(codec: bench.codec) == .nothing)
    let slot = try #require(bench.store(key: 5))
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.load(slot, key: 5) == .pool)
  }

  @Test func aFullPoolLosesNothingAndRecovers() throws {
    let bench = try Bench(slots: 100, frames: 40, poolLimit: CompressedPool.blockSize)
    defer { bench.destroy() }
    // Noise: 16 pages fill the only block there may be.
    let slots = try (0..<40).map { try #require(bench.store(key: $0 * 16 + 1)) }
    for _ in 0..<16 { #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed) }
    for _ in 0..<5 { #expect(bench.layer.compressOldest(codec: bench.codec) == .poolFull) }
    #expect(bench.layer.cachedPages == 24)
    #expect(bench.load(slots[16], key: 16 * 16 + 1) == .cached)
    bench.layer.setPoolLimit(bytes: 1 << 20)
    #expect(bench.layer.statistics().poolLimitBytes == 1 << 20)
    // The page that did not fit is still the oldest.
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.load(slots[16], key: 16 * 16 + 1) == .pool)
    while bench.layer.compressOldest(codec: bench.codec) != .nothing {}
    for (index, slot) in slots.enumerated() {
      #expect(bench.load(slot, key: UInt64(index) * 16 + 1) == .pool)
      bench.layer.release(slot)
    }
    #expect(bench.isEmpty())
  }

  @Test func aBrokenObjectIsLostAndNothingElse() throws {
    let bench = try Bench(slots: 10, frames: 4, poolLimit: 1 << 20)
    defer { bench.destroy() }
    let slot = try #require(bench.store(key: 5))
    let other = try #require(bench.store(key: 6))
    while bench.layer.compressOldest(codec: bench.codec) != .nothing {}
    memset(bench.layer.pool.bytes(bench.layer.table.word(slot).poolOffset), 0xA5, 8)
    #expect(bench.layer.load(slot, into: bench.page.bytes, codec: bench.codec) == .lost)
    #expect(bench.layer.load(slot, into: bench.page.bytes, codec: bench.codec) == .lost)
    #expect(bench.load(other, key: 6) == .pool)
    #expect(bench.layer.statistics().lostPages == 1 && bench.layer.statistics().objects == 1)
    bench.layer.release(slot)
    bench.layer.release(other)
    #expect(bench.isEmpty())
  }

  @Test func metadataIsAtMost24BytesPerPage() throws {
    let pages = 20_000
    let bench = try Bench(slots: 1 << 22, frames: 64, poolLimit: 1 << 30)
    defer { bench.destroy() }
    for key in 0..<UInt64(pages) {
      _ = try #require(bench.store(key: key * 16 + 2))
      #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    }
    // Page tables add 4, and objects carry 4 in the arena.
    let perPage = Double(bench.layer.statistics().metadataBytes) / Double(pages)
    #expect(perPage < 20, "\(perPage) bytes per page")
  }
}

/// A slot layer with what one thread needs to use it.
private struct Bench {
  let layer: SlotLayer
  let codec: Codec
  let page = TestPage()
  private let scratch = TestPage()

  init(slots: Int, frames: Int, poolLimit: Int) throws {
    layer = try SlotLayer.create(
      maximumSlots: slots, cacheFrames: frames, poolReserveBytes: 1 << 30, poolLimitBytes: poolLimit)
    codec = try .create()
  }

  func destroy() {
    layer.destroy()
    codec.destroy()
    page.destroy()
    scratch.destroy()
  }

  func store(key: UInt64) -> SlotNumber? {
    page.fill(key: key)
    return layer.store(page: page.bytes, target: 1, virtualPage: key)
  }

  /// What the load says, or nil if the content is wrong.
  func load(_ slot: SlotNumber, key: UInt64) -> LoadResult? {
    memset(page.bytes, 0x5A, pageSize)
    let result = layer.load(slot, into: page.bytes, codec: codec)
    return page.holds(key: key, scratch: scratch) ? result : nil
  }

  func isEmpty() -> Bool {
    let figures = layer.statistics()
    return figures.slotsInUse == 0 && figures.cachedPages == 0 && figures.objects == 0
      && figures.arenaBytes == 0 && figures.compressedBytes == 0 && figures.zeroPages == 0
      && figures.lostPages == 0 && layer.freeFrames == figures.cacheCapacityPages
  }
}
