import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct AreaSegmentTests {
  @Test func objectsNeitherOverlapNorGetLost() {
    var random = SeededRandom(seed: SeededRandom.seed)
    // Small ones, big ones, all kinds.
    for round in 0..<TestScale.rounds(60) {
      let built = BuiltSegment(&random, longest: [1, 48, 400, pageSize][round % 4])
      defer { built.destroy() }
      var taken = [Bool](repeating: false, count: AreaPlace.unitsPerSegment)
      let entriesEnd = AreaSegment.headerBytes + built.objects.count * AreaSegment.entryBytes
      var units = 0
      for object in built.objects {
        let count = AreaSegment.units(length: object.content.count)
        units += count
        #expect(object.unit * AreaPlace.unit >= entriesEnd)
        #expect(object.unit + count <= AreaPlace.unitsPerSegment)
        for unit in object.unit..<object.unit + count {
          #expect(!taken[unit], "VSWAP_SEED=\(SeededRandom.seed)")
          taken[unit] = true
        }
      }
      #expect(built.units == units)
      #expect(AreaSegment.count(built.buffer, built.stamp) == built.objects.count)
      for (index, object) in built.objects.enumerated() {
        let entry = AreaSegment.entry(built.buffer, index)
        #expect(entry.slot == object.slot && entry.unit == object.unit && entry.length == object.content.count)
        #expect(entry.units == AreaSegment.units(length: entry.length))
        #expect(built.reads(object), "VSWAP_SEED=\(SeededRandom.seed)")
      }
    }
  }

  @Test func theSmallestObjectsFitTheCounters() {
    var random = SeededRandom(seed: 1)
    let built = BuiltSegment(&random, longest: 1)
    defer { built.destroy() }
    // 13 bits each.
    #expect(built.objects.count == (AreaPlace.segmentBytes - 64) / 72)
    #expect(built.objects.count < 1 << 13 && built.units < 1 << 13)
  }

  @Test func noFlippedBitPasses() {
    var random = SeededRandom(seed: SeededRandom.seed)
    let built = BuiltSegment(&random, longest: 700)
    defer { built.destroy() }
    var wrong = 0
    for object in built.objects.prefix(TestScale.rounds(40)) {
      let start = object.unit * AreaPlace.unit
      for bit in 0..<(AreaSegment.objectHeaderBytes + object.content.count) * 8 {
        built.flip(start + bit / 8, bit % 8)
        if built.content(object) != nil { wrong += 1 }
        built.flip(start + bit / 8, bit % 8)
      }
      #expect(built.reads(object))
    }
    #expect(wrong == 0, "VSWAP_SEED=\(SeededRandom.seed)")
  }

  @Test func noFlippedBitOfTheReverseMapPasses() {
    var random = SeededRandom(seed: SeededRandom.seed)
    let built = BuiltSegment(&random, longest: 3000)
    defer { built.destroy() }
    var wrong = 0
    let entriesEnd = AreaSegment.headerBytes + built.objects.count * AreaSegment.entryBytes
    for byte in Array(0..<40) + Array(AreaSegment.headerBytes..<entriesEnd) {
      for bit in 0..<8 {
        built.flip(byte, bit)
        if AreaSegment.count(built.buffer, built.stamp) != nil { wrong += 1 }
        built.flip(byte, bit)
      }
    }
    #expect(wrong == 0)
    #expect(AreaSegment.count(built.buffer, built.stamp) != nil)
  }

  @Test func whatWasWrittenElsewhereOrEarlierDoesNotPass() {
    var random = SeededRandom(seed: SeededRandom.seed)
    let built = BuiltSegment(&random, longest: 2000)
    defer { built.destroy() }
    let stamp = built.stamp
    var others: [AreaSegment.Stamp] = []
    for change in 1...3 {
      others.append(.init(identity: stamp.identity, segment: stamp.segment, generation: stamp.generation &- UInt32(change)))
      others.append(.init(identity: stamp.identity, segment: stamp.segment &+ UInt32(change), generation: stamp.generation))
      others.append(.init(identity: stamp.identity &+ UInt64(change), segment: stamp.segment, generation: stamp.generation))
      others.append(.init(identity: random.next(), segment: stamp.segment, generation: stamp.generation))
    }
    others.append(.init(identity: stamp.identity, segment: stamp.generation, generation: stamp.segment))
    for other in others {
      #expect(AreaSegment.count(built.buffer, other) == nil)
      for object in built.objects { #expect(built.content(object, stamp: other) == nil) }
    }
    for object in built.objects {
      #expect(built.content(object, slot: object.slot ^ 1) == nil)
      #expect(built.content(object, slot: 0) == nil)
      // The same bytes, at another place of the same segment.
      #expect(built.content(object, unit: object.unit + 1) == nil)
      #expect(built.content(object, unit: object.unit - 1) == nil)
      // The slot's word says that it is shorter.
      #expect(built.content(object, bytes: AreaSegment.objectHeaderBytes + object.content.count - 1) == nil)
    }
  }

  @Test func garbageIsNoObject() {
    var random = SeededRandom(seed: SeededRandom.seed)
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)
    defer { buffer.deallocate() }
    let words = buffer.assumingMemoryBound(to: UInt64.self)
    for round in 0..<TestScale.rounds(20) {
      for index in 0..<AreaPlace.segmentBytes / 8 { words[index] = round == 0 ? 0 : round == 1 ? .max : random.next() }
      let stamp = AreaSegment.Stamp(identity: round < 2 ? 0 : random.next(), segment: UInt32(round), generation: 0)
      #expect(AreaSegment.count(buffer, stamp) == nil)
      // A plausible magic number and count do not help.
      buffer.storeBytes(of: 0x4745_5350_4157_5356, as: UInt64.self)
      for count in [0, 1, 1000, UInt32.max] {
        buffer.storeBytes(of: count, toByteOffset: 24, as: UInt32.self)
        #expect(AreaSegment.count(buffer, stamp) == nil)
      }
      for unit in 0..<AreaPlace.unitsPerSegment - 65 {
        let object = buffer + unit * AreaPlace.unit
        let slot = object.load(fromByteOffset: 8, as: UInt32.self)
        #expect(AreaSegment.content(of: object, bytes: 65 * AreaPlace.unit, slot: slot, unit: unit, stamp) == nil)
      }
    }
  }
}

/// A segment full of random objects.
private struct BuiltSegment {
  struct Object {
    var slot: SlotNumber
    var unit: Int
    var content: [UInt8]
  }

  let buffer: UnsafeMutableRawPointer
  let stamp: AreaSegment.Stamp
  let units: Int
  private(set) var objects: [Object] = []

  init(_ random: inout SeededRandom, longest: Int) {
    buffer = .allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)
    memset(buffer, 0x77, AreaPlace.segmentBytes)
    stamp = AreaSegment.Stamp(
      identity: random.next(), segment: UInt32(1 + random.below(1000)), generation: UInt32(3000 + random.below(1000)))
    var builder = AreaSegment.Builder(buffer: buffer, stamp: stamp)
    while true {
      let content = (0..<1 + random.below(longest)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
      let slot = SlotNumber(1 + random.below(1 << 27 - 1))
      guard let unit = builder.append(content, length: content.count, slot: slot) else { break }
      objects.append(Object(slot: slot, unit: unit, content: content))
    }
    units = builder.units
    builder.finish()
  }

  func destroy() { buffer.deallocate() }

  func flip(_ byte: Int, _ bit: Int) {
    (buffer + byte).assumingMemoryBound(to: UInt8.self).pointee ^= 1 << UInt8(bit)
  }

  func content(
    _ object: Object, stamp: AreaSegment.Stamp? = nil, slot: SlotNumber? = nil, unit: Int? = nil, bytes: Int? = nil
  ) -> (bytes: UnsafeRawPointer, length: Int)? {
    AreaSegment.content(
      of: buffer + object.unit * AreaPlace.unit,
      bytes: bytes ?? AreaSegment.units(length: object.content.count) * AreaPlace.unit, slot: slot ?? object.slot,
      unit: unit ?? object.unit, stamp ?? self.stamp)
  }

  func reads(_ object: Object) -> Bool {
    guard let (bytes, length) = content(object), length == object.content.count else { return false }
    return memcmp(bytes, object.content, length) == 0
  }
}
