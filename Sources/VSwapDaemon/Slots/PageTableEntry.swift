/// What a page table says about a page, in 32 bits.
///
/// | entry         | meaning                                                                            |
/// |---------------|------------------------------------------------------------------------------------|
/// | 0             | nothing: never evicted, or zero-filled, or resident and not worth a note            |
/// | 1 ..< 2^31    | the slot that holds the page                                                       |
/// | bit 31 set    | the page is resident; bits 0-1: times the reclaimer still passes over it ("hot"); bit 2: it came  |
/// |               | back because it was asked for, and the reclaimer has not passed over it since       |
enum PageTableEntry {
  /// Nothing is known of the page.
  static let none: UInt32 = 0
  /// Set when the page is resident.
  static let residentFlag: UInt32 = 1 << 31
  private static let askedFlag: UInt32 = 1 << 2
  /// Second chances a page can have at most.
  static let maximumChances: UInt32 = 3

  /// A resident page with `chances` (0 ... 3) left.
  static func resident(chances: UInt32) -> UInt32 {
    residentFlag | min(chances, maximumChances)
  }

  /// A page that was faulted in, not brought along with another.
  static func askedFor(chances: UInt32) -> UInt32 { resident(chances: chances) | askedFlag }

  /// Whether it was faulted in lately.
  static func isAskedFor(_ entry: UInt32) -> Bool { isResident(entry) && entry & askedFlag != 0 }

  /// Whether the entry is a slot number.
  static func isSlot(_ entry: UInt32) -> Bool { entry != none && entry < residentFlag }

  /// Whether the page is noted as resident.
  static func isResident(_ entry: UInt32) -> Bool { entry & residentFlag != 0 }

  /// Second chances of a resident page.
  static func chances(_ entry: UInt32) -> UInt32 { isResident(entry) ? entry & maximumChances : 0 }
}
