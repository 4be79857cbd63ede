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
    // The segment says which slot it is, and anybody may have written it.
    guard slot > 0, slot <= layer.table.highest, let found = backing(layer, layer.table.word(slot)),
      isIn(found, area, segment), layer.table.tryRetain(slot)
    else { return }
    var word = layer.table.word(slot)
    // A clean copy beneath a frame of the swap cache: the page goes without the frame. If the copy is damaged the frame is all there is of the page.
    if word.kind == .cached, let beneath = backing(layer, word), isIn(beneath, area, segment) {
      if content(beneath.place, slot, buffer, stamp) == nil {
        _ = layer.detachBeneath(slot, word)
      } else if let uncovered = layer.uncover(slot, word) {
        word = uncovered
      }
    }
    guard isIn(word, area, segment), unit == nil || word.place.unitInSegment == unit else {
      layer.release(slot)
      return
    }
    Interleaving.point()
    visit(slot, word, content(word.place, slot, buffer, stamp))
  }

  private static func content(
    _ place: AreaPlace, _ slot: SlotNumber, _ buffer: UnsafeRawPointer, _ stamp: AreaSegment.Stamp
  ) -> (bytes: UnsafeRawPointer, length: Int)? {
    let object = buffer + place.unitInSegment * AreaPlace.unit
    return AreaSegment.content(of: object, bytes: place.bytes, slot: slot, unit: place.unitInSegment, stamp)
  }

  /// The word, or the one beneath its frame. Without a reference, or once the word has changed, that may be any slot's: so it is read once.
  private static func backing(_ layer: SlotLayer, _ word: SlotWord) -> SlotWord? {
    word.kind == .cached ? layer.cache.beneath(word.frame) : word
  }

  private static func isIn(_ word: SlotWord, _ area: Int, _ segment: UInt32) -> Bool {
    word.kind == .area && word.place.area == area && word.place.segment == segment
  }
}
