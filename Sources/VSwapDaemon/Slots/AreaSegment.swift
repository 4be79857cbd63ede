import CXXHash

/// How a segment of a swap area looks: header, entries (the reverse map), free space, objects. Entries grow from the start, objects from
/// the end downwards, so that one write takes both.
///
/// | bytes  | header                              | entry (8)             | object (16, then content, to 64)           |
/// |--------|-------------------------------------|-----------------------|--------------------------------------------|
/// | 0...   | magic 8, identity 8, segment 4,     | slot 4, unit 2,       | hash 8, slot 4, length 2, 0 2;             |
/// |        | generation 4, count 4, 0 4, hash 8  | length 2              | length 4096 is a raw page                  |
///
/// An object's hash (XXH3, 64 bits) covers all that follows it, seeded with the area's identity, the segment's generation and the place:
/// what lay there in an earlier life of the segment, or comes from elsewhere, does not pass.
enum AreaSegment {
  static let headerBytes = 64
  static let entryBytes = 8
  static let objectHeaderBytes = 16
  private static let magic: UInt64 = 0x4745_5350_4157_5356  // "VSWAPSEG"

  /// Where and when a segment was written.
  struct Stamp {
    var identity: UInt64
    var segment: UInt32
    var generation: UInt32

    fileprivate func seed(unit: Int) -> UInt64 {
      identity &+ (UInt64(generation) << 32 | UInt64(segment)) &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(unit)
    }
  }

  /// One object, as its entry has it.
  struct Entry {
    var slot: SlotNumber
    var unit: Int
    var length: Int

    /// Units that the object takes.
    var units: Int { AreaSegment.units(length: length) }
  }

  /// Units of an object with `length` (1 ... 4096) bytes of content.
  static func units(length: Int) -> Int { (objectHeaderBytes + length + AreaPlace.unit - 1) / AreaPlace.unit }

  private static func objectHash(_ object: UnsafeRawPointer, length: Int, _ stamp: Stamp, unit: Int) -> UInt64 {
    vs_hash(object + 8, objectHeaderBytes - 8 + length, stamp.seed(unit: unit))
  }

  /// The content of the object at `object` (`bytes` can be read there), if it is the one that was written for the slot at that place.
  static func content(
    of object: UnsafeRawPointer, bytes: Int, slot: SlotNumber, unit: Int, _ stamp: Stamp
  ) -> (bytes: UnsafeRawPointer, length: Int)? {
    let length = Int(object.load(fromByteOffset: 12, as: UInt16.self))
    guard (1...pageSize).contains(length), objectHeaderBytes + length <= bytes,
      object.load(fromByteOffset: 8, as: UInt32.self) == slot,
      object.load(as: UInt64.self) == objectHash(object, length: length, stamp, unit: unit)
    else { return nil }
    return (object + objectHeaderBytes, length)
  }

  /// Fills a buffer of a segment's size.
  struct Builder {
    let buffer: UnsafeMutableRawPointer
    let stamp: Stamp
    private(set) var count = 0
    private var lowest = AreaPlace.unitsPerSegment

    init(buffer: UnsafeMutableRawPointer, stamp: Stamp) {
      self.buffer = buffer
      self.stamp = stamp
    }

    /// Units taken by objects.
    var units: Int { AreaPlace.unitsPerSegment - lowest }

    /// Returns the unit where the object begins; nil: it does not fit any more.
    mutating func append(_ content: UnsafeRawPointer, length: Int, slot: SlotNumber) -> Int? {
      let unit = lowest - AreaSegment.units(length: length)
      let entries = headerBytes + (count + 1) * entryBytes
      guard unit * AreaPlace.unit >= entries else { return nil }
      let object = buffer + unit * AreaPlace.unit
      object.storeBytes(of: slot, toByteOffset: 8, as: UInt32.self)
      object.storeBytes(of: UInt16(length), toByteOffset: 12, as: UInt16.self)
      object.storeBytes(of: 0, toByteOffset: 14, as: UInt16.self)
      (object + objectHeaderBytes).copyMemory(from: content, byteCount: length)
      object.storeBytes(of: objectHash(object, length: length, stamp, unit: unit), as: UInt64.self)
      let entry = buffer + headerBytes + count * entryBytes
      entry.storeBytes(of: slot, as: UInt32.self)
      entry.storeBytes(of: UInt16(unit), toByteOffset: 4, as: UInt16.self)
      entry.storeBytes(of: UInt16(length), toByteOffset: 6, as: UInt16.self)
      count += 1
      lowest = unit
      return unit
    }

    /// Writes the header. What lies between entries and objects is cleared: it is nobody's.
    func finish() {
      let end = headerBytes + count * entryBytes
      (buffer + end).initializeMemory(as: UInt8.self, repeating: 0, count: lowest * AreaPlace.unit - end)
      buffer.initializeMemory(as: UInt8.self, repeating: 0, count: headerBytes)
      buffer.storeBytes(of: magic, as: UInt64.self)
      buffer.storeBytes(of: stamp.identity, toByteOffset: 8, as: UInt64.self)
      buffer.storeBytes(of: stamp.segment, toByteOffset: 16, as: UInt32.self)
      buffer.storeBytes(of: stamp.generation, toByteOffset: 20, as: UInt32.self)
      buffer.storeBytes(of: UInt32(count), toByteOffset: 24, as: UInt32.self)
      buffer.storeBytes(of: headerHash(buffer, count: count, stamp), toByteOffset: 32, as: UInt64.self)
    }
  }

  private static func headerHash(_ buffer: UnsafeRawPointer, count: Int, _ stamp: Stamp) -> UInt64 {
    vs_hash(buffer, 32, stamp.seed(unit: 0)) ^ vs_hash(buffer + headerBytes, count * entryBytes, stamp.seed(unit: 1))
  }

  /// Number of entries of a whole segment in `buffer`; nil: it is not the one that was written there.
  static func count(_ buffer: UnsafeRawPointer, _ stamp: Stamp) -> Int? {
    let count = Int(buffer.load(fromByteOffset: 24, as: UInt32.self))
    guard buffer.load(as: UInt64.self) == magic, count <= (AreaPlace.segmentBytes - headerBytes) / entryBytes,
      buffer.load(fromByteOffset: 32, as: UInt64.self) == headerHash(buffer, count: count, stamp)
    else { return nil }
    return count
  }

  static func entry(_ buffer: UnsafeRawPointer, _ index: Int) -> Entry {
    let entry = buffer + headerBytes + index * entryBytes
    return Entry(
      slot: entry.load(as: UInt32.self), unit: Int(entry.load(fromByteOffset: 4, as: UInt16.self)),
      length: Int(entry.load(fromByteOffset: 6, as: UInt16.self)))
  }
}
