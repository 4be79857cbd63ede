import Testing

@testable import VSwapDaemon

@Suite struct WritebackOrderTests {
  @Test func nothingIsKeptUntilThereIsAnArea() throws {
    let bench = try OrderBench(slots: 10)
    defer { bench.destroy() }
    bench.push(1)
    #expect(bench.pop() == nil && !bench.order.isEnabled)
    bench.order.enable()
    bench.push(1)
    #expect(bench.pop() == 1 && bench.pop() == nil)
  }

  @Test func theOldestComesFirst() throws {
    let bench = try OrderBench(slots: 1000)
    defer { bench.destroy() }
    bench.order.enable()
    for slot in 1...1000 { bench.push(SlotNumber(slot)) }
    for slot in 1...1000 { #expect(bench.pop() == SlotNumber(slot)) }
    #expect(bench.pop() == nil)
  }

  @Test func whatLeftThePoolIsSkipped() throws {
    let bench = try OrderBench(slots: 8)
    defer { bench.destroy() }
    bench.order.enable()
    for slot in 1...8 { bench.push(SlotNumber(slot)) }
    bench.leave(1)
    bench.leave(4)
    // Another page, in the pool as well: not as old.
    bench.leave(6)
    bench.change(6, times: 5)
    // Compaction moved it.
    bench.change(7, times: 3)
    for slot in [2, 3, 5, 7, 8] { #expect(bench.pop() == SlotNumber(slot)) }
    #expect(bench.pop() == nil)
  }

  /// Pushes, pops, moves, pages that leave, in such numbers that the ring is swept often: every object that did not move too often comes,
  /// once, and in its order; and the ring does not grow.
  @Test func sweepingKeepsTheOrder() throws {
    let bench = try OrderBench(slots: 20_000)
    defer { bench.destroy() }
    bench.order.enable()
    var random = SeededRandom(seed: SeededRandom.seed)
    // In the order of their pushes.
    var expected: [SlotNumber: Int] = [:]
    var moves: [SlotNumber: Int] = [:]
    /// Versions of the slot's earlier entries: with five bits of them, one can look like the latest, and comes too early.
    var earlier: [SlotNumber: [UInt64]] = [:]
    var latest = -1
    var popped = 0
    func check(_ slot: SlotNumber) {
      guard let position = expected.removeValue(forKey: slot) else { return }
      let version = bench.table.word(slot).version
      if earlier[slot, default: []].dropLast().contains(where: { (version &- $0) & 31 < 4 }) { return }
      #expect(position > latest, "VSWAP_SEED=\(SeededRandom.seed)")
      latest = position
      popped += 1
    }
    for push in 0..<TestScale.rounds(1_000_000) {
      let slot = SlotNumber(1 + random.below(20_000))
      switch random.below(20) {
      case 0:
        if expected[slot] != nil, moves[slot, default: 0] < 3 {
          bench.change(slot, times: 1)
          moves[slot, default: 0] += 1
        }
      case 1:
        bench.leave(slot)
        expected[slot] = nil
      case 2, 3:
        if let slot = bench.pop() { check(slot) }
      default:
        // As when a page is faulted in, freed, and the slot used again.
        if expected[slot] != nil { bench.change(slot, times: 4 + random.below(20)) }
        bench.push(slot)
        earlier[slot, default: []].append(bench.table.word(slot).version)
        expected[slot] = push
        moves[slot] = 0
      }
    }
    #expect(bench.order.metadataBytes <= 2 << 20)
    while let slot = bench.pop() { check(slot) }
    #expect(expected.isEmpty && popped > 0, "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(bench.order.metadataBytes <= 2 << 16)
  }
}

/// An order beside a slot table without a pool: words say pool, and nobody looks.
private struct OrderBench {
  let table: SlotTable
  let order: WritebackOrder

  init(slots: Int) throws {
    table = try SlotTable.create(maximumSlots: slots)
    order = try WritebackOrder.create()
    for slot in 1...slots {
      guard table.allocate(target: 1, virtualPage: 1) == SlotNumber(slot) else { preconditionFailure("not in order") }
      table.publish(SlotNumber(slot), .pool(offset: 1, length: 1, after: table.freshWord(SlotNumber(slot))))
    }
  }

  func destroy() {
    table.destroy()
    order.destroy()
  }

  /// The slot comes into the pool.
  func push(_ slot: SlotNumber) {
    change(slot, times: 1)
    order.push(slot, table.word(slot), objects: 20_000, table: table)
  }

  func pop() -> SlotNumber? { order.pop(table: table) }

  /// Still in the pool, so many changes later.
  func change(_ slot: SlotNumber, times: Int) {
    for _ in 0..<times { table.publish(slot, .pool(offset: 1, length: 1, after: table.word(slot))) }
  }

  func leave(_ slot: SlotNumber) {
    table.publish(slot, .zero(after: table.word(slot)))
  }
}
