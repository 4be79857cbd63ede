import Testing

@testable import VSwapDaemon

@Suite struct SlotWordTests {
  private let blank = SlotWord(bits: 0)

  @Test func aZeroedDescriptorIsFree() {
    #expect(blank.kind == .free)
    #expect(blank.nextFree == 0)
    #expect(blank.version == 0)
  }

  @Test(arguments: [UInt32(1), 0x1234_5678, .max]) func payloadsSurvivePacking(number: UInt32) {
    #expect(SlotWord.free(next: number, after: blank).nextFree == number)
    let cached = SlotWord.cached(frame: number, after: blank)
    #expect(cached.kind == .cached && cached.frame == number && cached.version == 1)
    for length in [1, 2, 2048, 4095, 4096] {
      let pool = SlotWord.pool(offset: number, length: length, after: blank)
      #expect(pool.kind == .pool && pool.poolOffset == number && pool.poolLength == length)
    }
  }

  @Test func theVersionCountsChangesAndWraps() {
    var word = blank
    for step in 1...3 {
      word = .zero(after: word)
      #expect(word.version == UInt64(step))
    }
    let last = SlotWord(bits: SlotWord.versionMask << SlotWord.versionShift)
    let wrapped = SlotWord.pool(offset: .max, length: 4096, after: last)
    #expect(wrapped.version == 0 && wrapped.poolOffset == .max && wrapped.poolLength == 4096)
    #expect(SlotWord.lost(after: wrapped).version == 1)
  }

  @Test func ownersSurvivePacking() {
    let owner = OwnerWord(count: 32767, target: 8191, virtualPage: (1 << 36) - 1)
    #expect(owner.bits == .max)
    #expect(owner.count == 32767 && owner.target == 8191 && owner.virtualPage == (1 << 36) - 1)
    let other = OwnerWord(count: 1, target: 5, virtualPage: 0x7_FFFF_FFFF)
    #expect(other.count == 1 && other.target == 5 && other.virtualPage == 0x7_FFFF_FFFF)
  }

  @Test func pageTableEntriesAreTold() {
    #expect(!PageTableEntry.isSlot(0) && !PageTableEntry.isResident(0))
    #expect(PageTableEntry.isSlot(1) && PageTableEntry.isSlot((1 << 31) - 1))
    let resident = PageTableEntry.resident(chances: 2)
    #expect(PageTableEntry.isResident(resident) && !PageTableEntry.isSlot(resident))
    let copied = PageTableEntry.withCopy(resident, 1 << 28 - 1)
    #expect(PageTableEntry.copy(copied) == 1 << 28 - 1 && PageTableEntry.held(copied) == 1 << 28 - 1)
    #expect(PageTableEntry.chances(copied) == 2 && !PageTableEntry.isSlot(copied))
    #expect(PageTableEntry.passedOver(copied) == PageTableEntry.withCopy(PageTableEntry.resident(chances: 1), 1 << 28 - 1))
    #expect(PageTableEntry.withCopy(copied, PageTableEntry.none) == resident)
    #expect(PageTableEntry.copy(resident) == 0 && PageTableEntry.copy(7) == 0 && PageTableEntry.held(7) == 7)
    #expect(PageTableEntry.chances(resident) == 2 && PageTableEntry.chances(7) == 0)
  }
}
