/// What a page table says about a page, in 32 bits.
///
/// | entry         | meaning                                                                            |
/// |---------------|------------------------------------------------------------------------------------|
/// | 0             | nothing: never evicted, or zero-filled, or resident and not worth a note            |
/// | 1 ..< 2^31    | the slot that holds the page                                                       |
/// | bit 31 set    | the page is resident; bits 0-1: times the reclaimer still passes over it ("hot"); bits 3-30: the  |
/// |               | slot that still holds what the page was when it came back (`CleanCopies`), 0 for none, below 2^28  |
enum PageTableEntry {
  /// Nothing is known of the page.
  static let none: UInt32 = 0
  /// Set when the page is resident.
  static let residentFlag: UInt32 = 1 << 31
  /// Second chances a page can have at most.
  static let maximumChances: UInt32 = 3

  /// A resident page with `chances` (0 ... 3) left.
  static func resident(chances: UInt32) -> UInt32 {
    residentFlag | min(chances, maximumChances)
  }

  /// Whether the entry is a slot number.
  static func isSlot(_ entry: UInt32) -> Bool { entry != none && entry < residentFlag }

  /// Whether the page is noted as resident.
  static func isResident(_ entry: UInt32) -> Bool { entry & residentFlag != 0 }

  private static let copyShift: UInt32 = 3
  private static let copyMask: UInt32 = (1 << 28 - 1) << copyShift

  /// A resident page's entry, with a slot (below 2^28) that it came from and still has.
  static func withCopy(_ entry: UInt32, _ slot: SlotNumber) -> UInt32 {
    assert(isResident(entry) && slot < 1 << 28)
    return entry & ~copyMask | slot << copyShift
  }

  /// The slot that a resident page came from and still has; `none` for none.
  static func copy(_ entry: UInt32) -> SlotNumber { isResident(entry) ? (entry & copyMask) >> copyShift : none }

  /// A resident page's entry after the reclaimer has passed over it: a chance less.
  static func passedOver(_ entry: UInt32) -> UInt32 {
    residentFlag | entry & copyMask | (chances(entry) - 1)
  }

  /// The slot that an entry has a reference to; `none` for none.
  static func held(_ entry: UInt32) -> SlotNumber { isSlot(entry) ? entry : copy(entry) }

  /// Second chances of a resident page.
  static func chances(_ entry: UInt32) -> UInt32 { isResident(entry) ? entry & maximumChances : 0 }
}
