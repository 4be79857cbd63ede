/// The slot layer's side of swap areas: objects leave the pool for a segment that was written, and come back. Words change by exchange, held
/// by a reference, as everywhere; a segment is named by a word only after its write has completed.
extension SlotLayer {
  /// From now on the order of objects is kept; those that are in the pool already come first.
  func enableWriteback() {
    if order.isEnabled { return }
    order.enable()
    incompressible.enable()
    enqueuePool()
  }

  /// Every object of the pool, in the order of slots: where the order was not kept, or was lost.
  func enqueuePool() {
    for slot in 1..<max(1, table.highest) + 1 {
      let word = table.word(slot)
      if word.kind == .pool { noteInPool(slot, word) }
    }
  }

  /// The next object that should leave the pool, with a reference that the caller gives back.
  func oldestInPool() -> SlotNumber? {
    while let slot = incompressible.pop(table: table) ?? order.pop(table: table) {
      guard table.tryRetain(slot) else { continue }
      if table.word(slot).kind == .pool { return slot }
      release(slot)
    }
    return nil
  }

  /// It could not be written: it is the newest again.
  func putBack(_ slot: SlotNumber) {
    let word = table.word(slot)
    if word.kind == .pool { noteInPool(slot, word) }
  }

  /// Copies a slot's pool object to 4096 private bytes. nil: it is not in the pool any more. The caller holds a reference.
  func copyFromPool(_ slot: SlotNumber, into: UnsafeMutableRawPointer) -> (word: SlotWord, length: Int)? {
    while true {
      let word = table.word(slot)
      guard word.kind == .pool else { return nil }
      SharedBytes.copyOut(from: pool.bytes(word.poolOffset), to: into, count: word.poolLength)
      Interleaving.point()
      if table.isStill(slot, word) { return (word, word.poolLength) }
    }
  }

  /// Points a slot, which the caller holds, to a copy of its content in a sealed segment. false: the content is somewhere else by now, and
  /// the copy is released.
  func placeInArea(_ slot: SlotNumber, from word: SlotWord, _ place: AreaPlace) -> Bool {
    var word = word
    Interleaving.point()
    while !table.replace(slot, word, with: .area(place, after: word)) {
      let now = table.word(slot)
      // Compaction moves objects. As long as the reference is held the slot has the same content.
      guard word.kind == .pool, now.kind == .pool else {
        areas.release(place)
        return false
      }
      word = now
    }
    Interleaving.point()
    freeBacking(word)
    return true
  }

  /// What became of an object that should go from an area to the pool.
  enum Placement {
    case placed
    case noRoom
    /// It is not in the area any more.
    case elsewhere
  }

  /// Points a slot that the caller holds to a copy of its area object in the pool, verbatim.
  func placeInPool(_ slot: SlotNumber, from word: SlotWord, _ content: UnsafeRawPointer, length: Int) -> Placement {
    guard let offset = pool.allocate(length: length, slot: slot) else { return .noRoom }
    SharedBytes.copyIn(from: content, to: pool.bytes(offset), count: length)
    Interleaving.point()
    let new = SlotWord.pool(offset: offset, length: length, after: word)
    guard table.replace(slot, word, with: new) else {
      pool.free(offset, length: length)
      return .elsewhere
    }
    Interleaving.point()
    freeBacking(word)
    noteInPool(slot, new)
    return .placed
  }

  /// The stamp that objects of a sealed segment carry.
  func stamp(_ area: Int, _ segment: UInt32) -> AreaSegment.Stamp {
    AreaSegment.Stamp(
      identity: areas.identity(area), segment: segment, generation: areas.generation(area, segment))
  }

  /// The content of an object that was read from where `word` says; nil: it is not what was written, or the slot has moved and the
  /// area has gone meanwhile (`loseInArea` does nothing then).
  func content(
    of object: UnsafeRawPointer, _ slot: SlotNumber, _ word: SlotWord
  ) -> (bytes: UnsafeRawPointer, length: Int)? {
    let place = word.place
    return AreaSegment.content(
      of: object, bytes: place.bytes, slot: slot, unit: place.unitInSegment, stamp(place.area, place.segment))
  }

  /// Decompresses content (1 ... 4096 bytes) into a page. false: it makes no sense.
  func unpack(_ content: (bytes: UnsafeRawPointer, length: Int), into: UnsafeMutableRawPointer, codec: Codec) -> Bool {
    if content.length == pageSize {
      into.copyMemory(from: content.bytes, byteCount: pageSize)
      return true
    }
    return decompress(content.bytes, content.length, into: into, codec: codec)
  }

  /// What could not be read back, or is not what was written, is lost: just that page. Counted with its place. false: the slot has moved
  /// meanwhile, and nothing is lost.
  @discardableResult
  func loseInArea(_ slot: SlotNumber, _ word: SlotWord) -> Bool {
    let place = word.place
    Interleaving.point()
    guard table.replace(slot, word, with: .lost(after: word)) else { return false }
    areas.readFailed(place.area, offset: place.offset)
    countLost()
    areas.release(place)
    return true
  }
}
