import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct CompressedPoolTests {
  @Test func classesFitTheirObjects() {
    #expect(CompressedPool.sizeClass(length: 1) == 1)
    #expect(CompressedPool.sizeClass(length: 28) == 1)
    #expect(CompressedPool.sizeClass(length: 29) == 2)
    #expect(CompressedPool.sizeClass(length: Codec.rawThreshold - 1) == 127)
    #expect(CompressedPool.sizeClass(length: CompressedPool.longestCompressed) == 127)
    #expect(CompressedPool.sizeClass(length: 4061) == CompressedPool.rawClass)
    #expect(CompressedPool.sizeClass(length: 4096) == CompressedPool.rawClass)
  }

  @Test func rawPagesFillABlockCompletely() throws {
    let pool = try CompressedPool.create(reserveBytes: 1 << 20, limitBytes: CompressedPool.blockSize)
    defer { pool.destroy() }
    for slot in 1...16 { #expect(pool.allocate(length: 4096, slot: SlotNumber(slot)) != nil) }
    #expect(pool.allocate(length: 4096, slot: 17) == nil)
    #expect(pool.arenaBytes == CompressedPool.blockSize)
  }

  @Test func theLimitHoldsAndCanBeChanged() throws {
    let pool = try CompressedPool.create(reserveBytes: 1 << 20, limitBytes: 2 * CompressedPool.blockSize)
    defer { pool.destroy() }
    let first = try #require(pool.allocate(length: 100, slot: 1))
    #expect(pool.allocate(length: 1000, slot: 2) != nil)
    #expect(pool.allocate(length: 2000, slot: 3) == nil)
    // A block with room still serves its class.
    #expect(pool.allocate(length: 100, slot: 4) != nil)
    pool.setLimit(bytes: 3 * CompressedPool.blockSize)
    #expect(pool.allocate(length: 2000, slot: 3) != nil)
    pool.setLimit(bytes: 0)
    #expect(pool.allocate(length: 3000, slot: 5) == nil)
    pool.free(first, length: 100)
    #expect(pool.objects == 3 && pool.compressedBytes == 3100)
  }

  @Test func theReserveIsALimitToo() throws {
    let pool = try CompressedPool.create(reserveBytes: 2 * CompressedPool.blockSize, limitBytes: .max / 2)
    defer { pool.destroy() }
    #expect(pool.allocate(length: 100, slot: 1) != nil)
    #expect(pool.allocate(length: 1000, slot: 2) != nil)
    #expect(pool.allocate(length: 2000, slot: 3) == nil)
  }

  @Test func emptyBlocksGoBackToTheSystem() throws {
    let pool = try CompressedPool.create(reserveBytes: 1 << 24, limitBytes: 1 << 24)
    defer { pool.destroy() }
    var offsets: [UInt32] = []
    for slot in 1...16 * 128 {
      let offset = try #require(pool.allocate(length: 4096, slot: SlotNumber(slot)))
      memset(pool.bytes(offset), 1, 4096)
      offsets.append(offset)
    }
    #expect(pool.residentBytes() == 128 * CompressedPool.blockSize)
    for offset in offsets { pool.free(offset, length: 4096) }
    #expect(pool.arenaBytes == 0 && pool.objects == 0 && pool.compressedBytes == 0)
    #expect(pool.residentBytes() == CompressedPool.untrimmedBlocks * CompressedPool.blockSize)
    pool.trim()
    #expect(pool.residentBytes() == CompressedPool.retainedBlocks * CompressedPool.blockSize)
    #expect(pool.allocate(length: 64, slot: 1) != nil)
  }

  @Test func emptyBlocksStayWithinTheLimit() throws {
    let pool = try CompressedPool.create(reserveBytes: 1 << 24, limitBytes: 4 * CompressedPool.blockSize)
    defer { pool.destroy() }
    let offsets = try (1...64).map { try #require(pool.allocate(length: 4096, slot: $0)) }
    for offset in offsets { memset(pool.bytes(offset), 1, 4096) }
    pool.setLimit(bytes: 2 * CompressedPool.blockSize)
    for offset in offsets { pool.free(offset, length: 4096) }
    #expect(pool.residentBytes() == 2 * CompressedPool.blockSize)
  }

  /// Random allocations, frees and compactions; every object keeps its bytes and its slot.
  @Test func aMillionOperationsKeepEveryByte() throws {
    let model = try PoolModel(seed: SeededRandom.seed)
    for step in 1...TestScale.rounds(1_000_000) {
      guard model.step() else {
        Issue.record("step \(step), VSWAP_SEED=\(SeededRandom.seed)")
        return
      }
    }
    #expect(model.agreesInSum(), "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(model.moves > 0)
    model.destroy()
  }

  @Test func compactionGivesBlocksBack() throws {
    let model = try PoolModel(seed: SeededRandom.seed)
    for _ in 0..<4000 { model.allocate(length: 1000) }
    let before = model.layer.pool.arenaBytes
    for _ in 0..<3600 { #expect(model.freeAny()) }
    #expect(model.layer.pool.arenaBytes > before / 2, "the test needs sparse blocks")
    while model.layer.compact(maximumMoves: 37) > 0 {}
    // 400 objects, 63 to a block.
    #expect(model.layer.pool.arenaBytes <= 8 * CompressedPool.blockSize)
    #expect(model.agreesInSum())
    model.destroy()
  }
}

/// A slot layer whose pool objects are written directly, beside a plain array of what should be in them.
private final class PoolModel {
  let layer: SlotLayer
  private(set) var moves = 0
  private var random: SeededRandom
  private var objects: [(slot: SlotNumber, length: Int, key: UInt64)] = []
  private var growing = true
  private let scratch = TestPage()

  init(seed: UInt64) throws {
    random = SeededRandom(seed: seed)
    layer = try SlotLayer.create(
      maximumSlots: 10_000, cacheFrames: 1, poolReserveBytes: 1 << 26, poolLimitBytes: 8 << 20)
  }

  func destroy() {
    layer.destroy()
    scratch.destroy()
  }

  /// One random operation; false if something is not as it should be.
  func step() -> Bool {
    // Waves, so that blocks fill up and thin out.
    if random.below(5000) == 0 { growing.toggle() }
    let choice = random.below(100)
    if choice < 2 {
      moves += layer.compact(maximumMoves: 1 + random.below(50))
      return true
    }
    if choice < 12 { return objects.isEmpty || isIntact(objects[random.below(objects.count)]) }
    if choice < (growing ? 75 : 35) {
      // Few lengths most of the time: it is in busy classes that things happen.
      let length = random.below(4) == 0 ? 1 + random.below(4096) : [30, 700, 1400, 4096][random.below(4)]
      allocate(length: length)
      return true
    }
    return freeAny()
  }

  func allocate(length: Int) {
    guard let slot = layer.table.allocate(target: 1, virtualPage: 1) else { return }
    guard let offset = layer.pool.allocate(length: length, slot: slot) else {
      layer.table.publish(slot, .zero(after: layer.table.freshWord(slot)))
      layer.release(slot)
      return
    }
    let key = random.next() | 1
    fill(key, length)
    SharedBytes.copyIn(from: scratch.bytes, to: layer.pool.bytes(offset), count: length)
    let word = SlotWord.pool(offset: offset, length: length, after: layer.table.freshWord(slot))
    layer.table.publish(slot, word)
    objects.append((slot, length, key))
  }

  func freeAny() -> Bool {
    guard !objects.isEmpty else { return true }
    let index = random.below(objects.count)
    let object = objects[index]
    objects[index] = objects[objects.count - 1]
    objects.removeLast()
    defer { layer.release(object.slot) }
    return isIntact(object)
  }

  /// Whether the figures, and every object, are what they should be.
  func agreesInSum() -> Bool {
    let figures = layer.statistics()
    return figures.objects == objects.count && figures.slotsInUse == objects.count
      && figures.originalBytes == objects.count * pageSize
      && figures.compressedBytes == objects.reduce(0) { $0 + $1.length }
      && figures.arenaBytes >= figures.compressedBytes && objects.allSatisfy(isIntact)
  }

  private func isIntact(_ object: (slot: SlotNumber, length: Int, key: UInt64)) -> Bool {
    let word = layer.table.word(object.slot)
    guard word.kind == .pool, word.poolLength == object.length else { return false }
    fill(object.key, object.length)
    return memcmp(layer.pool.bytes(word.poolOffset), scratch.bytes, object.length) == 0
  }

  private func fill(_ key: UInt64, _ length: Int) {
    let words = scratch.bytes.assumingMemoryBound(to: UInt64.self)
    for index in 0..<(length + 7) / 8 { words[index] = key &+ UInt64(index) &* 0x9E37_79B9_7F4A_7C15 }
  }
}
