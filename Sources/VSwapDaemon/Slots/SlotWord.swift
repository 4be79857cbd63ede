/// Number of a virtual swap slot: 1 ..< 2^31. 0 means "no slot"; bit 31 belongs to `PageTableEntry`.
typealias SlotNumber = UInt32

/// The backing word of a slot: what holds the page's content, in 64 bits that change in one atomic step.
///
///     63        47 46                       3 2   0
///     [ version 17 | payload 44              | kind ]
///
/// | kind   | payload                                                                |
/// |--------|------------------------------------------------------------------------|
/// | free   | next free slot (32 bits), 0 at the end of the list                     |
/// | zero   | 0                                                                      |
/// | cached | frame number (32 bits)                                                 |
/// | pool   | offset in 16-byte units (bits 0-31), length - 1 in bytes (bits 32-43)  |
/// | area   | where it lies in a swap area: `AreaPlace`                              |
/// | lost   | 0: the content cannot be had any more; reading it must fail            |
///
/// Every change of the word, freeing and allocating included, adds one to the version (modulo 2^17), so
/// that "the word is the same" means "nothing happened", and not "it happened twice".
struct SlotWord: Equatable, Sendable {
  /// What the payload means. 6 and 7 are unused.
  enum Kind: UInt64 {
    case free = 0
    case zero = 1
    case cached = 2
    case pool = 3
    case area = 4
    case lost = 5
  }

  static let payloadShift: UInt64 = 3
  static let versionShift: UInt64 = 47
  static let payloadMask: UInt64 = (1 << 44) - 1
  static let versionMask: UInt64 = (1 << 17) - 1

  /// The packed form.
  let bits: UInt64

  /// Unpacks a word read from a descriptor.
  init(bits: UInt64) {
    self.bits = bits
  }

  /// The word that follows `previous` in the life of the same slot.
  private init(_ kind: Kind, payload: UInt64, after previous: SlotWord) {
    assert(payload <= Self.payloadMask)
    let version = (previous.version + 1) & Self.versionMask
    bits = kind.rawValue | payload << Self.payloadShift | version << Self.versionShift
  }

  /// What holds the content. Traps on a kind that does not exist: the table was overwritten.
  var kind: Kind {
    guard let kind = Kind(rawValue: bits & 7) else { preconditionFailure("impossible slot kind") }
    return kind
  }

  /// Changes of this word so far, modulo 2^17.
  var version: UInt64 { bits >> Self.versionShift }

  /// The bits between kind and version.
  var payload: UInt64 { bits >> Self.payloadShift & Self.payloadMask }

  /// Next free slot, 0 for none. Any value, but no trap, when the word is not a free one: the free list
  /// reads words that may have been allocated meanwhile, and discards what it got.
  var nextFree: SlotNumber { UInt32(truncatingIfNeeded: payload) }

  /// Frame of a cached page.
  var frame: UInt32 {
    assert(kind == .cached)
    return UInt32(truncatingIfNeeded: payload)
  }

  /// Offset of a pool object, in units of 16 bytes.
  var poolOffset: UInt32 {
    assert(kind == .pool)
    return UInt32(truncatingIfNeeded: payload)
  }

  /// Bytes of a pool object, 1 ... 4096; 4096 is a raw page.
  var poolLength: Int {
    assert(kind == .pool)
    return Int(payload >> 32) + 1
  }

  /// A slot on the free list, with the `next` one (0: none).
  static func free(next: SlotNumber, after previous: SlotWord) -> SlotWord {
    SlotWord(.free, payload: UInt64(next), after: previous)
  }

  /// A page of zeros, which needs no storage.
  static func zero(after previous: SlotWord) -> SlotWord {
    SlotWord(.zero, payload: 0, after: previous)
  }

  /// A page in the swap cache.
  static func cached(frame: UInt32, after previous: SlotWord) -> SlotWord {
    SlotWord(.cached, payload: UInt64(frame), after: previous)
  }

  /// An object in the compressed pool; `offset` in 16-byte units, `length` in bytes, 1 ... 4096.
  static func pool(offset: UInt32, length: Int, after previous: SlotWord) -> SlotWord {
    assert((1...pageSize).contains(length))
    return SlotWord(.pool, payload: UInt64(offset) | UInt64(length - 1) << 32, after: previous)
  }

  /// An object in a swap area.
  static func area(_ place: AreaPlace, after previous: SlotWord) -> SlotWord {
    SlotWord(.area, payload: place.payload, after: previous)
  }

  /// Where an area's object lies.
  var place: AreaPlace {
    assert(kind == .area)
    return AreaPlace(payload: payload)
  }

  /// The backing that `former`, an earlier word of the same slot, named: nothing has changed about it meanwhile.
  static func resuming(_ former: SlotWord, after previous: SlotWord) -> SlotWord {
    SlotWord(former.kind, payload: former.payload, after: previous)
  }

  /// A page whose content cannot be had any more.
  static func lost(after previous: SlotWord) -> SlotWord {
    SlotWord(.lost, payload: 0, after: previous)
  }
}
