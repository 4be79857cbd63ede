/// Where an object lies in a swap area.
struct AreaPlace: Equatable, Sendable {
  /// Bytes of the unit in which offsets and lengths are counted.
  static let unit = 64
  /// Bytes of a segment, which is written in one go and freed as a whole.
  static let segmentBytes = 256 << 10
  static let unitsPerSegment = segmentBytes / unit
  /// Areas at a time, and the most bytes of one: what fits into a slot's word.
  static let maximumAreas = 16
  static let maximumBytes = 512 << 30

  /// 0 ..< 16.
  var area: Int
  /// Units from the start of the area, below 2^33.
  var unit: UInt64
  /// Length with the object's header, 1 ... 128 units.
  var units: Int

  init(area: Int, unit: UInt64, units: Int) {
    self.area = area
    self.unit = unit
    self.units = units
  }

  /// Packed into 44 bits: area 4, length - 1 7, offset 33.
  init(payload: UInt64) {
    area = Int(payload >> 40)
    units = Int(payload >> 33 & 127) + 1
    unit = payload & (1 << 33 - 1)
  }

  var payload: UInt64 {
    assert((0..<Self.maximumAreas).contains(area) && (1...128).contains(units) && unit < 1 << 33)
    return UInt64(area) << 40 | UInt64(units - 1) << 33 | unit
  }

  var segment: UInt32 { UInt32(unit / UInt64(Self.unitsPerSegment)) }
  /// Units from the start of the segment.
  var unitInSegment: Int { Int(unit % UInt64(Self.unitsPerSegment)) }
  /// Bytes from the start of the area.
  var offset: Int { Int(unit) * Self.unit }
  var bytes: Int { units * Self.unit }
}
