/// What is alive in a segment that was read.
enum SegmentScan {
  /// Calls `visit` for each slot that lies in the segment now, with a reference that `visit` takes over, and the object's content:
  /// nil where it is not what was written.
  ///
  /// A slot can have been freed, faulted in or moved since the segment was written; its word tells, and the exchange by which it is
  /// re-pointed. If the reverse map cannot be read, the slots' own words say who lies here, at the price of a look at all of them.
  static func visitLive(
    _ layer: SlotLayer, area: Int, segment: UInt32, buffer: UnsafeRawPointer,
    _ visit: (SlotNumber, SlotWord, (bytes: UnsafeRawPointer, length: Int)?) -> Void
  ) {
    let stamp = layer.stamp(area, segment)
    if let count = AreaSegment.count(buffer, stamp) {
      for index in 0..<count {
        let entry = AreaSegment.entry(buffer, index)
        visitIfLive(layer, entry.slot, area, segment, buffer, stamp, unit: entry.unit, visit)
      }
    } else {
      for slot in 1..<max(1, layer.table.highest) + 1 {
        visitIfLive(layer, slot, area, segment, buffer, stamp, unit: nil, visit)
      }
    }
  }

  private static func visitIfLive(
    _ layer: SlotLayer, _ slot: SlotNumber, _ area: Int, _ segment: UInt32, _ buffer: UnsafeRawPointer,
    _ stamp: AreaSegment.Stamp, unit: Int?, _ visit: (SlotNumber, SlotWord, (bytes: UnsafeRawPointer, length: Int)?) -> Void
  ) {
    let seen = layer.table.word(slot)
    guard seen.kind == .area, seen.place.area == area, seen.place.segment == segment, layer.table.tryRetain(slot) else { return }
    let word = layer.table.word(slot)
    guard word.kind == .area, word.place.area == area, word.place.segment == segment,
      unit == nil || word.place.unitInSegment == unit
    else {
      layer.release(slot)
      return
    }
    Interleaving.point()
    let object = buffer + word.place.unitInSegment * AreaPlace.unit
    let content = AreaSegment.content(
      of: object, bytes: word.place.bytes, slot: slot, unit: word.place.unitInSegment, stamp)
    visit(slot, word, content)
  }
}
