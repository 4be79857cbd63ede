import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct CleanCopiesTests {
  @Test func anUnchangedPageIsNotCompressedAgain() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    let place = bench.layer.table.word(slot).poolOffset
    for round in 1...3 {
      #expect(bench.comeBack(slot, key: 5))
      #expect(bench.layer.copies == 1 && bench.layer.cachedPages == 0)
      #expect(bench.evict(slot, key: 5))
      #expect(bench.layer.copies == 0 && bench.layer.cachedPages == 1 && bench.load(slot, key: 5) == .cached)
      #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
      #expect(bench.load(slot, key: 5) == .pool && bench.layer.table.word(slot).poolOffset == place)
      let figures = bench.layer.statistics()
      #expect(figures.storedPages == 1 && figures.objects == 1 && figures.reusedCopies == round)
    }
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func aRefaultFromTheCacheKeepsWhatIsBeneath() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.comeBack(slot, key: 5) && bench.evict(slot, key: 5))
    #expect(bench.comeBack(slot, key: 5))
    #expect(bench.layer.cachedPages == 0 && bench.layer.table.word(slot).kind == .pool)
    // The order of the cache still has an entry of the frame.
    #expect(bench.layer.compressOldest(codec: bench.codec) == .nothing)
    #expect(bench.evict(slot, key: 5))
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed && bench.load(slot, key: 5) == .pool)
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func aChangedPageDoesNotPass() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.comeBack(slot, key: 5))
    bench.page.fill(key: 5)
    for byte in [0, 2000, 4095] {
      let old = bench.page.bytes.load(fromByteOffset: byte, as: UInt8.self)
      bench.page.bytes.storeBytes(of: old ^ 1, toByteOffset: byte, as: UInt8.self)
      #expect(!bench.layer.evictCopy(slot, page: bench.page.bytes, target: 1, virtualPage: 5))
      bench.page.bytes.storeBytes(of: old, toByteOffset: byte, as: UInt8.self)
    }
    bench.layer.dropCopy(slot)
    #expect(bench.isEmpty() && bench.layer.copies == 0)
  }

  /// The ring that pages arrive in is the target's, too; what passed the comparison is what others may get to read.
  @Test func whatIsComparedIsWhatIsKept() throws {
    // One thread uses the layer, the other only `word`.
    nonisolated(unsafe) let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    nonisolated(unsafe) let shared = TestPage()
    defer { shared.destroy() }
    shared.fill(key: 5)
    nonisolated(unsafe) let word = (shared.bytes + 4088).assumingMemoryBound(to: Atomic<UInt64>.self)
    let right = word.pointee.load(ordering: .relaxed)
    let isOver = Atomic<Bool>(false)
    let unchanged = Atomic<Int>(0)
    onThreads(2) { thread in
      guard thread == 0 else {
        while !isOver.load(ordering: .relaxed) {
          // Once it has been right, however few rounds the other one has while this one is off the CPU.
          guard unchanged.load(ordering: .relaxed) > 0 else { continue }
          word.pointee.store(~right, ordering: .relaxed)
          word.pointee.store(right, ordering: .relaxed)
        }
        return
      }
      for _ in 0..<TestScale.rounds(20_000) {
        guard bench.comeBack(slot, key: 5) else { continue }
        guard bench.layer.evictCopy(slot, page: shared.bytes, target: 1, virtualPage: 5) else {
          bench.layer.countCopies(-1)
          continue
        }
        unchanged.add(1, ordering: .relaxed)
        if bench.load(slot, key: 5) != .cached { Issue.record("another page than the one that was compared") }
      }
      isOver.store(true, ordering: .relaxed)
    }
    #expect(unchanged.load(ordering: .relaxed) > 0)
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func aPageOutlivesADamagedCopy() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.comeBack(slot, key: 5) && bench.evict(slot, key: 5))
    let promised = bench.layer.freeFrames
    #expect(bench.layer.budget.reserve(promised))
    #expect(!bench.layer.detachBeneath(slot, bench.layer.table.word(slot)), "all frames are promised to others")
    bench.layer.budget.release(promised)
    #expect(bench.layer.detachBeneath(slot, bench.layer.table.word(slot)))
    #expect(bench.load(slot, key: 5) == .cached && bench.layer.statistics().objects == 0 && bench.layer.cachedPages == 1)
    #expect(!bench.layer.detachBeneath(slot, bench.layer.table.word(slot)), "nothing is beneath any more")
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed && bench.load(slot, key: 5) == .pool)
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func nothingIsLeftOfAPageThatGoesFromTheCache() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.comeBack(slot, key: 5) && bench.evict(slot, key: 5))
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func onlyWhatHasAnObjectIsKept() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let zero = try #require(bench.store(key: 16))
    let cached = try #require(bench.store(key: 5))
    #expect(!bench.comeBack(zero, key: 16) && !bench.comeBack(cached, key: 5))
    // Three quarters of the pool are in use.
    let slot = try bench.inPool(key: 6)
    bench.layer.setPoolLimit(bytes: CompressedPool.blockSize)
    #expect(!bench.comeBack(slot, key: 6) && bench.layer.copies == 0)
    for slot in [zero, cached, slot] { bench.layer.release(slot) }
    #expect(bench.isEmpty())
  }

  @Test func withoutAFrameTheCopyIsOfNoUse() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.comeBack(slot, key: 5))
    let others = (0..<4).map { bench.store(key: 32 + $0 * 16 + 5)! }
    #expect(!bench.evict(slot, key: 5))
    bench.layer.dropCopy(slot)
    for other in others { bench.layer.release(other) }
    #expect(bench.isEmpty())
  }

  @Test func processesShareACopy() throws {
    let bench = try CopyBench()
    defer { bench.destroy() }
    let slot = try bench.inPool(key: 5)
    #expect(bench.layer.retain(slot))
    #expect(bench.comeBack(slot, key: 5) && bench.comeBack(slot, key: 5) && bench.layer.copies == 2)
    // The second finds the frame of the first.
    #expect(bench.evict(slot, key: 5) && bench.evict(slot, key: 5))
    #expect(bench.layer.cachedPages == 1 && bench.layer.freeFrames == 3)
    // One takes it back, the other still has it swapped out.
    #expect(bench.comeBack(slot, key: 5) && bench.load(slot, key: 5) == .pool)
    bench.layer.dropCopy(slot)
    #expect(bench.load(slot, key: 5) == .pool)
    bench.layer.release(slot)
    #expect(bench.isEmpty())
  }

  @Test func compactionLeavesWhatIsBeneathAlone() throws {
    let bench = try CopyBench(frames: 3000)
    defer { bench.destroy() }
    var slots = (0..<2000).map { bench.store(key: $0 * 16 + 5)! }
    while bench.layer.compressOldest(codec: bench.codec) != .nothing {}
    for (index, slot) in slots.enumerated() where index % 7 == 0 {
      let key = UInt64(index) * 16 + 5
      #expect(bench.comeBack(slot, key: key) && bench.evict(slot, key: key))
    }
    for (index, slot) in slots.enumerated() where index % 7 != 0 && index % 5 != 0 {
      bench.layer.release(slot)
      slots[index] = 0
    }
    while bench.layer.compact(maximumMoves: 1000) > 0 {}
    while bench.layer.compressOldest(codec: bench.codec) != .nothing {}
    for (index, slot) in slots.enumerated() where slot != 0 {
      #expect(bench.load(slot, key: UInt64(index) * 16 + 5) == .pool)
      bench.layer.release(slot)
    }
    #expect(bench.isEmpty())
  }

  private func kept(_ pages: Int, by yield: inout CopyYield) -> Int {
    var count = 0
    for _ in 0..<pages where yield.shouldKeep() { count += 1 }
    return count
  }

  @Test func keepingStopsWhereItDoesNotPay() {
    var yield = CopyYield()
    #expect(kept(1, by: &yield) == 1)
    for _ in 0..<100 { yield.note(isUnchanged: false) }
    #expect(kept(320, by: &yield) == 10, "a few, to find out when it changes")
    for _ in 0..<100 { yield.note(isUnchanged: true) }
    #expect(kept(320, by: &yield) == 320)
    for _ in 0..<5000 { yield.note(isUnchanged: false) }
    #expect(kept(320, by: &yield) == 10)
  }
}

private struct CopyBench {
  let layer: SlotLayer
  let codec = try! Codec.create()
  let page = TestPage()
  private let scratch = TestPage()

  init(frames: Int = 4) throws {
    layer = try SlotLayer.create(
      maximumSlots: 4000, cacheFrames: frames, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 26)
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

  func inPool(key: UInt64) throws -> SlotNumber {
    let slot = try #require(store(key: key))
    #expect(layer.compressOldest(codec: codec) == .compressed)
    return slot
  }

  /// What the pager does when the page was mapped.
  func comeBack(_ slot: SlotNumber, key: UInt64) -> Bool {
    page.fill(key: key)
    return layer.keepCopy(slot, of: page.bytes)
  }

  func evict(_ slot: SlotNumber, key: UInt64) -> Bool {
    page.fill(key: key)
    return layer.evictCopy(slot, page: page.bytes, target: 1, virtualPage: key)
  }

  func load(_ slot: SlotNumber, key: UInt64) -> LoadResult? {
    let result = layer.load(slot, into: page.bytes, codec: codec)
    return page.holds(key: key, scratch: scratch) ? result : nil
  }

  func isEmpty() -> Bool {
    let figures = layer.statistics()
    return figures.slotsInUse == 0 && figures.cachedPages == 0 && figures.objects == 0 && figures.copies == 0
      && figures.arenaBytes == 0 && layer.freeFrames == figures.cacheCapacityPages
  }
}
