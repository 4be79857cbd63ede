import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct SlotTableTests {
  @Test func freedSlotsAreUsedBeforeFreshOnes() throws {
    let table = try SlotTable.create(maximumSlots: 3)
    defer { table.destroy() }
    #expect(table.allocate(target: 1, virtualPage: 2) == 1)
    #expect(table.allocate(target: 1, virtualPage: 3) == 2)
    free(table, 1)
    #expect(table.inUse == 1)
    #expect(table.allocate(target: 1, virtualPage: 4) == 1)
    #expect(table.allocate(target: 1, virtualPage: 5) == 3)
    #expect(table.allocate(target: 1, virtualPage: 6) == nil)
    #expect(table.owner(3) == OwnerWord(count: 1, target: 1, virtualPage: 5))
  }

  @Test func memoryFollowsUse() throws {
    let table = try SlotTable.create(maximumSlots: 1 << 24)
    defer { table.destroy() }
    for _ in 1...1000 { _ = table.allocate(target: 0, virtualPage: 0) }
    #expect(table.metadataBytes <= 6 * pageSize)
  }

  @Test func referencesAreCountedUpToTheLimit() throws {
    let table = try SlotTable.create(maximumSlots: 1)
    defer { table.destroy() }
    #expect(!table.tryRetain(1) && !table.tryRetain(0) && !table.tryRetain(2) && !table.tryRetain(.max))
    let slot = try #require(table.allocate(target: 8191, virtualPage: 1 << 35))
    var count = 1
    while table.retain(slot) { count += 1 }
    #expect(count == Int(OwnerWord.maximumShared))
    // A worker still gets in.
    #expect(table.tryRetain(slot))
    #expect(!table.release(slot))
    table.setOwner(slot, target: 17, virtualPage: 3)
    let expected = OwnerWord(count: OwnerWord.maximumShared, target: 17, virtualPage: 3)
    #expect(table.owner(slot) == expected)
    for _ in 1..<count { #expect(!table.release(slot)) }
    #expect(table.release(slot))
    #expect(!table.tryRetain(slot))
  }

  @Test func everyChangeHasItsOwnVersion() throws {
    let table = try SlotTable.create(maximumSlots: 1)
    defer { table.destroy() }
    var words: [SlotWord] = []
    for _ in 1...5 {
      let slot = try #require(table.allocate(target: 0, virtualPage: 0))
      table.publish(slot, .cached(frame: 9, after: table.freshWord(slot)))
      words.append(table.word(slot))
      let next = SlotWord.pool(offset: 5, length: 9, after: table.word(slot))
      #expect(table.replace(slot, table.word(slot), with: next))
      #expect(!table.replace(slot, words[0], with: next))
      words.append(table.word(slot))
      free(table, slot)
    }
    #expect(Set(words.map(\.bits)).count == words.count)
  }

  /// Each slot is one thread's at a time.
  @Test func threadsNeverGetTheSameSlot() throws {
    let table = try SlotTable.create(maximumSlots: 8)
    defer { table.destroy() }
    let (rounds, seed) = (TestScale.rounds(100_000), SeededRandom.seed)
    let failures = Atomic<Int>(0)
    withUnsafePointer(to: failures) { failures in
      nonisolated(unsafe) let failures = failures
      onThreads(4) { thread in
        var random = SeededRandom(seed: seed &+ UInt64(thread))
        var held: [SlotNumber] = []
        for round in 0..<rounds {
          if random.below(2) == 0, held.count < 3,
            let slot = table.allocate(target: UInt32(thread), virtualPage: UInt64(round))
          {
            held.append(slot)
          } else if !held.isEmpty {
            let slot = held.remove(at: random.below(held.count))
            if table.owner(slot).target != UInt32(thread) { failures.pointee.add(1, ordering: .relaxed) }
            free(table, slot)
          }
        }
        for slot in held { free(table, slot) }
      }
    }
    #expect(failures.load(ordering: .relaxed) == 0, "VSWAP_SEED=\(seed)")
    #expect(table.inUse == 0)
  }
}

private func free(_ table: SlotTable, _ slot: SlotNumber) {
  guard table.release(slot) else { return }
  table.markFree(slot, after: table.word(slot))
  table.pushFree(slot)
}
