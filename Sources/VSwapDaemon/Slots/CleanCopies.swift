/// Clean copies: a page that came back keeps its slot, and with it the object in the pool or an area. If it is evicted again and its content has
/// not changed, which a hash tells, nothing is compressed or written again.
///
/// The page still goes through the swap cache, since only refaults from there say what is in use: the slot's word names a frame then,
/// and the frame notes the word from before ("beneath"). That belongs to the slot as long as the word names the frame: it is written
/// before the word is exchanged, nobody changes it afterwards, and whoever exchanges the word has both. So an exchange that
/// succeeds proves that what was read as beneath was this slot's. Writeback leaves an object beneath where it is, since the word
/// does not name it; who has to move it (compaction, cleaning, swapoff) takes the frame off first.
extension SlotLayer {
  /// The page of a slot was mapped: keeps the slot for the case that it does not change. `content` is what was mapped, 4096 private bytes.
  /// false: nothing is there to be kept, or no room; the reference stays the caller's. Otherwise it is the copy's until `evictCopy` or `dropCopy`.
  func keepCopy(_ slot: SlotNumber, of content: UnsafeRawPointer) -> Bool {
    while true {
      let word = table.word(slot)
      Interleaving.point()
      switch word.kind {
      case .pool, .area:
        guard hasRoomForCopy(word) else { return false }
        hashes.note(slot, content)
      case .cached:
        // What is beneath has been kept before: its hash is noted.
        guard let beneath = cache.beneath(word.frame), hasRoomForCopy(beneath) else { return false }
        guard uncover(slot, word) != nil else { continue }
      case .zero, .lost, .free:
        return false
      }
      countCopies(1)
      return true
    }
  }

  /// The page left its target again. true: it is what the kept slot holds, which has the page from here on. false: it has changed, or
  /// there is no frame for it; the copy stays the caller's.
  ///
  /// `page` is memory that the target may change at any time, and others may share the slot: it is read once, and what is compared is what is kept.
  func evictCopy(_ slot: SlotNumber, page: UnsafeRawPointer, target: UInt32, virtualPage: UInt64) -> Bool {
    guard let frame = cache.allocate() else { return false }
    SharedBytes.copyIn(from: page, to: cache.bytes(frame), count: pageSize)
    Interleaving.point()
    guard hashes.isSame(slot, cache.bytes(frame)) else {
      cache.free(frame)
      return false
    }
    guard cover(slot, with: frame) else { return false }
    if table.owner(slot).count == 1 { table.setOwner(slot, target: target, virtualPage: virtualPage) }
    countCopies(-1)
    countReusedCopy()
    return true
  }

  /// Gives a copy up.
  func dropCopy(_ slot: SlotNumber) {
    countCopies(-1)
    release(slot)
  }

  /// Puts a frame with the page over what the slot is backed by.
  private func cover(_ slot: SlotNumber, with frame: UInt32) -> Bool {
    while true {
      let word = table.word(slot)
      Interleaving.point()
      guard word.kind == .pool || word.kind == .area else {
        cache.free(frame)
        // Another process that shares the slot was faster.
        return word.kind == .cached
      }
      cache.setSlot(frame, slot, beneath: word)
      Interleaving.point()
      if table.replace(slot, word, with: .cached(frame: frame, after: word)) { break }
    }
    countCached()
    cache.pushNewest(frame)
    return true
  }

  /// Takes the frame off what is beneath; returns the new word. nil: the word is not `word` any more, or nothing is beneath. The caller holds a
  /// reference.
  func uncover(_ slot: SlotNumber, _ word: SlotWord) -> SlotWord? {
    guard let beneath = cache.beneath(word.frame) else { return nil }
    Interleaving.point()
    let new = SlotWord.resuming(beneath, after: word)
    guard table.replace(slot, word, with: new) else { return nil }
    freeFrame(word)
    return new
  }

  /// Gives up what is beneath, and keeps the page: in another frame, since the one that the word names cannot change. false: the word is not `word` any
  /// more, or no frame is to be had. The caller holds a reference.
  func detachBeneath(_ slot: SlotNumber, _ word: SlotWord) -> Bool {
    guard let beneath = cache.beneath(word.frame), budget.reserve(1) else { return false }
    defer { budget.release(1) }
    guard let frame = cache.allocate() else { return false }
    SharedBytes.copyIn(from: cache.bytes(word.frame), to: cache.bytes(frame), count: pageSize)
    cache.setSlot(frame, slot)
    Interleaving.point()
    guard table.replace(slot, word, with: .cached(frame: frame, after: word)) else {
      cache.free(frame)
      return false
    }
    cache.free(word.frame)
    cache.pushNewest(frame)
    freeBacking(beneath)
    return true
  }

  /// In the pool as long as a quarter of it is free, in an area that stays as long as a quarter of that is.
  private func hasRoomForCopy(_ word: SlotWord) -> Bool {
    if word.kind == .pool { return pool.arenaBytes < pool.limitBytes / 4 * 3 }
    let area = word.place.area
    return areas.rotation(area) == .active && areas.freeBytes(area) >= areas.bytes(area) / 4
  }

  /// The pool is nearly full, and there is no area with room to speak of: copies are in the way of pages that have no other place.
  var mustDropCopies: Bool { copies > 0 && pool.isNearLimit && !areas.hasAmpleRoom }
}
