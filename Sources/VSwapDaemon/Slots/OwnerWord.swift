/// The second word of a slot: who refers to it, and how many.
///
///     63               28 27      15 14    0
///     [ virtual page 36  | target 13 | count ]
///
/// Target and page name *one* holder, as a hint where to look; what counts is that target's page table.
/// The count is in the lowest bits so that a release is one `lock xadd`.
struct OwnerWord: Equatable, Sendable {
  static let countMask: UInt64 = (1 << 15) - 1
  static let targetMask: UInt64 = (1 << 13) - 1
  static let pageMask: UInt64 = (1 << 36) - 1

  /// References a slot can have at most.
  static let maximumCount = countMask
  /// References page tables can have at most. The rest is for workers, which hold a slot while they move
  /// its content and must not fail because a page is shared very often.
  static let maximumShared = maximumCount - 255

  /// The packed form.
  let bits: UInt64

  /// Unpacks a word read from a descriptor.
  init(bits: UInt64) {
    self.bits = bits
  }

  /// - Parameters:
  ///   - count: 0 ... 32767.
  ///   - target: 0 ..< 8192.
  ///   - virtualPage: address / 4096, 0 ..< 2^36.
  init(count: UInt64, target: UInt32, virtualPage: UInt64) {
    assert(count <= Self.countMask && UInt64(target) <= Self.targetMask && virtualPage <= Self.pageMask)
    bits = count | (UInt64(target) & Self.targetMask) << 15 | virtualPage << 28
  }

  /// References: page table entries, and workers at work on the slot.
  var count: UInt64 { bits & Self.countMask }

  /// Number of the target that holds the slot.
  var target: UInt32 { UInt32(truncatingIfNeeded: bits >> 15 & Self.targetMask) }

  /// Page number in that target.
  var virtualPage: UInt64 { bits >> 28 }
}
