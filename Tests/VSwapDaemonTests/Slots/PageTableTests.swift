import Testing

@testable import VSwapDaemon

@Suite struct PageTableTests {
  @Test func chunksComeAndGoWithTheirEntries() throws {
    let world = try World(maximumChunks: 2)
    defer { world.destroy() }
    let table = try BoxedTable(world)
    #expect(table.entry(77) == 0 && table.metadataBytes <= pageSize)
    #expect(table.set(77, 5) && table.set(1 << 35, 6))
    #expect(!table.set(513, 7), "two chunks are all there are")
    #expect(table.set(513, 0))
    #expect(table.entry(77) == 5 && table.entry(1 << 35) == 6 && table.slotCount == 2)
    #expect(table.set(77, 0) && table.set(513, 7))
    #expect(table.set(1 << 35, PageTableEntry.resident(chances: 1)) && table.slotCount == 1)
    #expect(table.set(513, 0) && table.set(1 << 35, 0) && table.slotCount == 0)
    table.destroy()
  }

  /// What a page that leaves needs is there before it leaves.
  @Test func aHeldPageHasItsPlace() throws {
    let world = try World(maximumChunks: 3)
    defer { world.destroy() }
    let (table, other) = (try BoxedTable(world), try BoxedTable(world))
    let some = PageTableEntry.resident(chances: 1)
    #expect(table.hold(from: 500, below: 520) && table.hold(from: 515, below: 516))
    #expect(other.set(0, some) && !other.set(512, some), "the third chunk was the last one")
    #expect(!table.hold(from: 1000, below: 1100), "one of two chunks is not enough")
    #expect(table.set(510, some) && table.set(510, 0) && table.set(515, some) && table.removeRange(from: 0, below: 1 << 30) == 0)
    #expect(table.moveRange(from: 0, to: 5, count: 600, target: 1))
    #expect(!other.set(512, some), "they stay though nothing is in them")
    #expect(table.set(511, some) && table.set(512, some))
    table.letGo(from: 500, below: 520)
    #expect(table.set(511, 0) && other.set(512, some), "the first one is nobody's any more")
    #expect(table.set(512, 0) && !other.set(1024, some))
    table.letGo(from: 515, below: 516)
    #expect(other.set(1024, some) && other.set(1024, 0))
    // Whoever leaves need not let go.
    #expect(table.hold(from: 0, below: 1) && !other.set(1024, some))
    table.destroy()
    #expect(other.set(1024, some))
    other.destroy()
  }

  @Test func forksHaveChunksThatEvictionsCannotUseUp() throws {
    let world = try World(maximumChunks: 7, keptForForks: 4)
    defer { world.destroy() }
    let parent = try BoxedTable(world)
    let slots = try (0..<3).map { try #require(world.newSlot(target: 1, page: UInt64($0) * 512)) }
    for (index, slot) in slots.enumerated() { #expect(parent.set(UInt64(index) * 512, slot)) }
    #expect(!parent.hold(from: 5000, below: 5001))
    let child = try parent.clone(target: 2)
    #expect(child.slotCount == 3)
    #expect(throws: KernelError(call: "clone", code: KernelError.noMemory)) { _ = try parent.clone(target: 3) }
    // What a fork has taken is none of the evictions', and comes back to forks.
    parent.destroy()
    #expect(child.hold(from: 5000, below: 5001))
    child.letGo(from: 5000, below: 5001)
    let grandchild = try child.clone(target: 3)
    child.destroy()
    grandchild.destroy()
    #expect(world.layer.statistics().slotsInUse == 0)
  }

  @Test func oneGroupLeavesAsManyChunksAsItHas() throws {
    let world = try World(maximumChunks: 8)
    defer { world.destroy() }
    let (greedy, modest) = (ChunkShare.create(), ChunkShare.create())
    defer {
      greedy.destroy()
      modest.destroy()
    }
    let tables = try [greedy, greedy, modest].map { try BoxedTable(world, share: $0) }
    var page: UInt64 = 0
    func fill(_ table: BoxedTable) -> Int {
      var count = 0
      while table.hold(from: page, below: page + 1) { (page, count) = (page + 512, count + 1) }
      return count
    }
    #expect(fill(tables[0]) == 4 && fill(tables[1]) == 0 && greedy.chunks == 4)
    #expect(fill(tables[2]) == 2 && modest.chunks == 2)
    for table in tables { table.destroy() }
    #expect(greedy.chunks == 0 && modest.chunks == 0)
  }

  @Test func sparseRangesAreCrossedInOrder() throws {
    let world = try World()
    defer { world.destroy() }
    let table = try BoxedTable(world)
    var random = SeededRandom(seed: SeededRandom.seed)
    var pages: Set<UInt64> = [0, (1 << 36) - 1]
    while pages.count < 1000 { pages.insert(random.next() >> 28) }
    for page in pages { #expect(table.set(page, UInt32(page & 0xFFFF) | 1)) }
    var found: [UInt64] = []
    var cursor: UInt64 = 0
    while let (page, entry) = table.next(from: cursor, below: 1 << 36) {
      #expect(entry == UInt32(page & 0xFFFF) | 1)
      found.append(page)
      #expect(table.set(page, 0))
      cursor = page + 1
    }
    #expect(found == pages.sorted(), "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(table.next(from: 0, below: 1 << 36) == nil)
    table.destroy()
  }

  @Test func emptyRunsAreMaximal() throws {
    let world = try World()
    defer { world.destroy() }
    let table = try BoxedTable(world)
    #expect(table.emptyRun(around: 5, from: 0, below: 1 << 36) == (0, 1 << 36))
    #expect(table.set(100, 1) && table.set(1 << 30, 2))
    #expect(table.emptyRun(around: 101, from: 0, below: 1 << 36) == (101, 1 << 30))
    #expect(table.emptyRun(around: 700, from: 600, below: 1024) == (600, 1024))
    #expect(table.emptyRun(around: 3, from: 0, below: 1 << 36) == (0, 100))
    #expect(table.emptyRun(around: 1 << 35, from: 50, below: 1 << 36) == (1 << 30 + 1, 1 << 36))
    #expect(table.emptyRun(around: 100, from: 0, below: 200) == (100, 100))
    _ = table.set(100, 0)
    _ = table.set(1 << 30, 0)
    table.destroy()
  }

  @Test func aCloneSharesSlots() throws {
    let world = try World()
    defer { world.destroy() }
    let parent = try BoxedTable(world)
    let slot = try #require(world.newSlot(target: 1, page: 9))
    #expect(parent.set(9, slot) && parent.set(10, PageTableEntry.resident(chances: 3)))
    let child = try parent.clone(target: 2)
    #expect(child.entry(9) == slot && child.entry(10) == PageTableEntry.resident(chances: 3))
    #expect(child.slotCount == 1)
    #expect(world.layer.owner(of: slot) == OwnerWord(count: 2, target: 1, virtualPage: 9))
    parent.destroy()
    #expect(world.layer.owner(of: slot).count == 1)
    child.destroy()
    #expect(world.layer.statistics().slotsInUse == 0)
  }

  @Test func aCloneThatFailsRetainsNothing() throws {
    let world = try World(maximumChunks: 3)
    defer { world.destroy() }
    let parent = try BoxedTable(world)
    let slots = try (0..<2).map { try #require(world.newSlot(target: 1, page: UInt64($0) * 512)) }
    #expect(parent.set(0, slots[0]) && parent.set(512, slots[1]))
    #expect(throws: KernelError(call: "clone", code: KernelError.noMemory)) {
      _ = try parent.clone(target: 2)
    }
    #expect(parent.set(512, 0) && parent.set(1, slots[1]))
    while world.layer.retain(slots[1]) {}
    #expect(throws: KernelError(call: "clone", code: KernelError.overflow)) {
      _ = try parent.clone(target: 2)
    }
    #expect(world.layer.owner(of: slots[0]).count == 1)
    #expect(world.layer.owner(of: slots[1]).count == OwnerWord.maximumShared)
    for _ in 1..<OwnerWord.maximumShared { world.layer.release(slots[1]) }
    parent.destroy()
    #expect(world.layer.statistics().slotsInUse == 0)
  }

  @Test func aMoveWithoutChunksLeavesTheSource() throws {
    let world = try World(maximumChunks: 2)
    defer { world.destroy() }
    let table = try BoxedTable(world)
    let slots = try (0..<2).map { try #require(world.newSlot(target: 1, page: UInt64($0))) }
    #expect(table.set(0, slots[0]) && table.set(511, slots[1]))
    #expect(!table.moveRange(from: 0, to: 1000, count: 512, target: 1))
    #expect(table.entry(0) == slots[0] && table.entry(511) == slots[1])
    #expect(table.moveRange(from: 0, to: 1024, count: 512, target: 1))
    #expect(table.entry(1024) == slots[0] && table.entry(1535) == slots[1])
    #expect(world.layer.owner(of: slots[1]).virtualPage == 1535)
    table.destroy()
  }

  @Test func sharedSlotsKeepTheOwnerTheyHave() throws {
    let world = try World()
    defer { world.destroy() }
    let parent = try BoxedTable(world)
    let slot = try #require(world.newSlot(target: 1, page: 0))
    #expect(parent.set(0, slot))
    let child = try parent.clone(target: 2)
    #expect(child.moveRange(from: 0, to: 5, count: 1, target: 2))
    #expect(world.layer.owner(of: slot) == OwnerWord(count: 2, target: 1, virtualPage: 0))
    #expect(parent.moveRange(from: 0, to: 7, count: 1, target: 1))
    #expect(world.layer.owner(of: slot) == OwnerWord(count: 2, target: 1, virtualPage: 7))
    parent.destroy()
    child.destroy()
  }

  @Test func memoryOfFreeChunksGoesBack() throws {
    let world = try World()
    defer { world.destroy() }
    let table = try BoxedTable(world)
    for chunk in 0..<UInt64(2000) { #expect(table.set(chunk * 512, PageTableEntry.residentFlag)) }
    #expect(world.arena.metadataBytes > 2000 * ChunkArena.chunkBytes)
    #expect(table.removeRange(from: 0, below: 1 << 36) == 0)
    #expect(world.arena.metadataBytes < 600 * ChunkArena.chunkBytes)
    table.destroy()
  }

  /// Random changes, ranges, moves and clones against a dictionary, in a dense corner and far away.
  @Test func agreesWithAModel() throws {
    let model = try PageTableModel(seed: SeededRandom.seed)
    for step in 1...TestScale.rounds(50_000) {
      guard try model.step() else {
        Issue.record("step \(step), VSWAP_SEED=\(SeededRandom.seed)")
        return
      }
    }
    #expect(model.finish(), "VSWAP_SEED=\(SeededRandom.seed)")
  }
}

/// A page table that can be changed inside `#expect`, whose macro makes everything immutable.
private final class BoxedTable {
  private var table: PageTable
  private let layer: SlotLayer

  convenience init(_ world: World, share: ChunkShare? = nil) throws {
    self.init(try PageTable.create(arena: world.arena, share: share), world.layer)
  }

  private init(_ table: PageTable, _ layer: SlotLayer) {
    self.table = table
    self.layer = layer
  }

  var slotCount: Int { table.slotCount }
  var metadataBytes: Int { table.metadataBytes }
  func destroy() { table.destroy(layer: layer) }
  func entry(_ page: UInt64) -> UInt32 { table.entry(page) }
  func set(_ page: UInt64, _ entry: UInt32) -> Bool { table.set(page, entry) }
  func hold(from low: UInt64, below end: UInt64) -> Bool { table.hold(from: low, below: end) }
  func letGo(from low: UInt64, below end: UInt64) { table.letGo(from: low, below: end) }
  func next(from low: UInt64, below end: UInt64) -> (vpn: UInt64, entry: UInt32)? {
    table.next(from: low, below: end)
  }
  func emptyRun(around page: UInt64, from low: UInt64, below end: UInt64) -> (start: UInt64, end: UInt64) {
    table.emptyRun(around: page, from: low, below: end)
  }
  func removeRange(from low: UInt64, below end: UInt64) -> Int {
    table.removeRange(from: low, below: end, layer: layer)
  }
  func moveRange(from: UInt64, to: UInt64, count: UInt64, target: UInt32) -> Bool {
    table.moveRange(from: from, to: to, count: count, layer: layer, target: target)
  }
  func clone(target: UInt32) throws(KernelError) -> BoxedTable {
    BoxedTable(try table.clone(layer: layer, target: target), layer)
  }
}

/// What a page table needs around it.
private struct World {
  let layer: SlotLayer
  let arena: ChunkArena

  init(maximumChunks: Int = 1 << 16, keptForForks: Int = 0) throws {
    layer = try SlotLayer.create(
      maximumSlots: 100_000, cacheFrames: 1, poolReserveBytes: 0, poolLimitBytes: 0)
    arena = try ChunkArena.create(maximumChunks: maximumChunks, keptForForks: keptForForks)
  }

  func destroy() {
    layer.destroy()
    arena.destroy()
  }

  /// A slot of a page of zeros: it takes nothing else.
  func newSlot(target: UInt32, page: UInt64) -> SlotNumber? {
    let zeros = TestPage()
    defer { zeros.destroy() }
    return layer.store(page: zeros.bytes, target: target, virtualPage: page)
  }
}

/// A page table, a dictionary that says what is in it, and the references each slot should have.
private final class PageTableModel {
  private let world: World
  private var table: PageTable
  private var random: SeededRandom
  private var entries: [UInt64: UInt32] = [:]

  init(seed: UInt64) throws {
    world = try World()
    table = try PageTable.create(arena: world.arena)
    random = SeededRandom(seed: seed)
  }

  func step() throws -> Bool {
    switch random.below(100) {
    case 0..<59: return set(somePage())
    case 59: return random.below(20) != 0 || dropCopies()
    case 60..<70: return next()
    case 70..<80: return emptyRun()
    case 80..<88: return removeRange()
    case 88..<99: return moveRange()
    default: return try clone()
    }
  }

  func finish() -> Bool {
    guard table.slotCount == entries.values.count(where: PageTableEntry.isSlot), countsAgree else { return false }
    table.destroy(layer: world.layer)
    let isEmpty = world.layer.statistics().slotsInUse == 0 && world.layer.copies == 0
    world.destroy()
    return isEmpty
  }

  private var countsAgree: Bool {
    table.copyCount == entries.values.count(where: { PageTableEntry.copy($0) != PageTableEntry.none })
      && table.copyCount == world.layer.copies
      && world.layer.statistics().slotsInUse == table.slotCount + table.copyCount
  }

  /// Mostly one of 8192 pages in a corner, sometimes anywhere.
  private func somePage() -> UInt64 {
    let region = random.below(10) == 0 ? random.next() >> 28 & ~8191 : 1 << 33
    return region + UInt64(random.below(8192))
  }

  private func set(_ page: UInt64) -> Bool {
    let old = table.entry(page)
    guard old == entries[page] ?? 0 else { return false }
    if PageTableEntry.isSlot(old) { world.layer.release(old) }
    if PageTableEntry.copy(old) != PageTableEntry.none { world.layer.dropCopy(PageTableEntry.copy(old)) }
    var new: UInt32 = 0
    switch random.below(5) {
    case 0: new = 0
    case 1: new = PageTableEntry.resident(chances: UInt32(random.below(4)))
    case 2:
      new = PageTableEntry.withCopy(PageTableEntry.resident(chances: 1), world.newSlot(target: 1, page: page) ?? 0)
      if PageTableEntry.copy(new) != PageTableEntry.none { world.layer.countCopies(1) }
    default: new = world.newSlot(target: 1, page: page) ?? 0
    }
    entries[page] = new == 0 ? nil : new
    return table.set(page, new) && table.entry(page) == new
  }

  private func dropCopies() -> Bool {
    table.dropCopies(layer: world.layer)
    entries = entries.mapValues { PageTableEntry.isResident($0) ? PageTableEntry.withCopy($0, PageTableEntry.none) : $0 }
    return table.copyCount == 0 && countsAgree
  }

  private func next() -> Bool {
    let low = somePage()
    let end = low + UInt64(random.below(2) == 0 ? random.below(3000) : 1 << 35)
    let expected = entries.keys.filter { $0 >= low && $0 < end }.min()
    let found = table.next(from: low, below: min(end, addressablePages))
    return found?.vpn == expected && found?.entry == expected.flatMap { entries[$0] }
  }

  private func emptyRun() -> Bool {
    let page = somePage()
    let low = page - min(page, UInt64(random.below(2) == 0 ? random.below(600) : 1 << 34))
    let end = min(addressablePages, page + 1 + UInt64(random.below(2) == 0 ? random.below(600) : 1 << 34))
    let found = table.emptyRun(around: page, from: low, below: end)
    if entries[page] != nil { return found == (page, page) }
    let start = entries.keys.filter { $0 < page && $0 >= low }.max().map { $0 + 1 } ?? low
    let stop = entries.keys.filter { $0 > page && $0 < end }.min() ?? end
    return found == (start, stop)
  }

  private func removeRange() -> Bool {
    let low = somePage()
    let huge = random.below(50) == 0
    let end = min(addressablePages, low + UInt64(huge ? 1 << 35 : random.below(1500)))
    let gone = entries.filter { $0.key >= low && $0.key < end }
    for page in gone.keys { entries[page] = nil }
    let released = table.removeRange(from: low, below: end, layer: world.layer)
    return released == gone.values.count(where: PageTableEntry.isSlot) && countsAgree
  }

  private func moveRange() -> Bool {
    let (from, count) = (somePage(), UInt64(1 + random.below(1500)))
    let to = random.below(3) == 0 ? from + UInt64(random.below(100)) : somePage()
    guard max(from, to) + count <= addressablePages else { return true }
    let moved = entries.filter { $0.key >= from && $0.key < from + count }
    for page in moved.keys { entries[page] = nil }
    for page in entries.keys where page >= to && page < to + count && from != to { entries[page] = nil }
    for (page, entry) in moved { entries[page - from + to] = entry }
    guard table.moveRange(from: from, to: to, count: count, layer: world.layer, target: 1), countsAgree else { return false }
    return moved.allSatisfy { page, entry in
      table.entry(page - from + to) == entry
        && (PageTableEntry.held(entry) == PageTableEntry.none
          || world.layer.owner(of: PageTableEntry.held(entry)).virtualPage == page - from + to)
    }
  }

  private func clone() throws -> Bool {
    var copy = try table.clone(layer: world.layer, target: 2)
    // Clean copies are not inherited.
    let same = entries.allSatisfy { page, entry in
      copy.entry(page) == (PageTableEntry.isResident(entry) ? PageTableEntry.withCopy(entry, PageTableEntry.none) : entry)
    }
    let counted = entries.values.allSatisfy {
      !PageTableEntry.isSlot($0) || world.layer.owner(of: $0).count == 2
    }
    let sameCount = copy.slotCount == table.slotCount
    copy.destroy(layer: world.layer)
    return same && counted && sameCount
  }
}
