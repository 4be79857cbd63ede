import Synchronization

/// The descriptors of all virtual swap slots: 16 bytes each, in a sparse memfd.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. Lock-free: free slots form a
/// Treiber stack (IBM RJ 5118, 1986) whose head carries a tag against ABA. Freed descriptors are used again
/// before ones that were never touched, so RAM follows the high-water mark.
///
/// The table knows nothing about backings: whoever takes the last reference frees what the word names, and
/// then the slot (see `SlotLayer`).
struct SlotTable: @unchecked Sendable {
  /// 16 bytes. `word` is a `SlotWord`, `owner` an `OwnerWord`.
  struct Descriptor: ~Copyable {
    let word: Atomic<UInt64>
    let owner: Atomic<UInt64>
  }

  /// First page of the mapping.
  private struct Header: ~Copyable {
    /// Tag (upper half, counts changes) and first free slot (lower half, 0: none).
    let freeHead: Atomic<UInt64>
    /// Slots 1 ... fresh have been in use at least once.
    let fresh: Atomic<UInt64>
    let inUse: Atomic<Int>
  }

  /// Slots are numbered 1 ... maximumSlots.
  let maximumSlots: Int
  private let mapping: Mapping

  /// A table for `maximumSlots` (1 ..< 2^31) slots; takes one page of RAM until slots are used.
  static func create(maximumSlots: Int) throws(KernelError) -> SlotTable {
    precondition(maximumSlots > 0 && maximumSlots < 1 << 31)
    precondition(MemoryLayout<Descriptor>.stride == 16)
    let length = pageSize + (maximumSlots + 1) * MemoryLayout<Descriptor>.stride
    return SlotTable(
      maximumSlots: maximumSlots, mapping: try Mapping.create(name: "vswapd-slots", length: length))
  }

  /// Gives the memory back. Nobody may use a copy of the handle any more.
  func destroy() {
    mapping.destroy()
  }

  private var header: UnsafeMutablePointer<Header> {
    mapping.base.assumingMemoryBound(to: Header.self)
  }

  private func descriptor(_ slot: SlotNumber) -> UnsafeMutablePointer<Descriptor> {
    assert(slot > 0 && Int(slot) <= maximumSlots, "slot out of range")
    return (mapping.base + pageSize).assumingMemoryBound(to: Descriptor.self) + Int(slot)
  }

  /// Slots in use.
  var inUse: Int { header.pointee.inUse.load(ordering: .relaxed) }

  /// Slots 1 ... this one have been in use at least once.
  var highest: SlotNumber { UInt32(truncatingIfNeeded: header.pointee.fresh.load(ordering: .relaxed)) }

  /// RAM held by descriptors, in bytes.
  var metadataBytes: Int { mapping.allocatedBytes() }

  // MARK: Allocation

  /// A slot with one reference, the caller's; its word is still a free one. nil when all are in use.
  func allocate(target: UInt32, virtualPage: UInt64) -> SlotNumber? {
    guard let slot = popFree() ?? takeFresh() else { return nil }
    // Nobody else can have a reference, and a worker with a stale number gets none while the count is 0.
    // Releasing, so that who gets one afterwards also sees the word of this life or a later one.
    let owner = OwnerWord(count: 1, target: target, virtualPage: virtualPage)
    descriptor(slot).pointee.owner.store(owner.bits, ordering: .releasing)
    header.pointee.inUse.add(1, ordering: .relaxed)
    return slot
  }

  /// Puts a slot whose last reference is gone, and whose backing is being freed, on the free list.
  ///
  /// The word becomes free before the caller frees the backing: after a crash in between, the backing is
  /// one that no slot names, which recovery collects.
  func markFree(_ slot: SlotNumber, after word: SlotWord) {
    let free = SlotWord.free(next: 0, after: word)
    descriptor(slot).pointee.word.store(free.bits, ordering: .releasing)
  }

  /// Makes a slot that `markFree` has been called for available.
  func pushFree(_ slot: SlotNumber) {
    let word = SlotWord(bits: descriptor(slot).pointee.word.load(ordering: .relaxed))
    assert(word.kind == .free)
    var head = header.pointee.freeHead.load(ordering: .relaxed)
    while true {
      let next = SlotWord.free(next: UInt32(truncatingIfNeeded: head), after: word)
      descriptor(slot).pointee.word.store(next.bits, ordering: .relaxed)
      // Releasing: the link, and all that was done to the slot, before it can be popped.
      let (done, found) = header.pointee.freeHead.weakCompareExchange(
        expected: head, desired: Self.retagged(head, slot), successOrdering: .releasing,
        failureOrdering: .relaxed)
      if done { break }
      head = found
    }
    // Not before it can be popped: who reserves slots by this count must find them.
    header.pointee.inUse.subtract(1, ordering: .relaxed)
  }

  private func popFree() -> SlotNumber? {
    var head = header.pointee.freeHead.load(ordering: .acquiring)
    while true {
      let slot = UInt32(truncatingIfNeeded: head)
      if slot == 0 { return nil }
      // Somebody may pop and change this slot meanwhile; then the link is nonsense and the tag has changed.
      let next = SlotWord(bits: descriptor(slot).pointee.word.load(ordering: .relaxed)).nextFree
      Interleaving.point()
      // Acquiring: pairs with the push of this slot (every exchange since continues its release sequence).
      let (done, found) = header.pointee.freeHead.weakCompareExchange(
        expected: head, desired: Self.retagged(head, next), successOrdering: .acquiring,
        failureOrdering: .acquiring)
      if done { return slot }
      head = found
    }
  }

  private func takeFresh() -> SlotNumber? {
    var fresh = header.pointee.fresh.load(ordering: .relaxed)
    while fresh < UInt64(maximumSlots) {
      let (done, found) = header.pointee.fresh.weakCompareExchange(
        expected: fresh, desired: fresh + 1, ordering: .relaxed)
      if done { return UInt32(truncatingIfNeeded: fresh + 1) }
      fresh = found
    }
    return nil
  }

  /// The head that follows `head`, with `slot` on top: 32 bits of tag, so ABA needs 2^32 changes while one
  /// thread stands between its load and its exchange.
  private static func retagged(_ head: UInt64, _ slot: SlotNumber) -> UInt64 {
    (head >> 32 &+ 1) << 32 | UInt64(slot)
  }

  // MARK: References

  /// One more page table entry for a slot the caller has a reference of. false: it is shared too often
  /// already (32512 times); the caller restores the page instead of sharing it.
  func retain(_ slot: SlotNumber) -> Bool {
    addReference(slot, limit: OwnerWord.maximumShared)
  }

  /// A reference for a worker that knows the slot by number only, which may be any number at all. false:
  /// there is no such slot, or it is free, or being freed.
  ///
  /// true says only that the slot stays allocated from now on. Whether it is the page the worker meant, its
  /// word tells: read it afterwards.
  func tryRetain(_ slot: SlotNumber) -> Bool {
    guard slot > 0, Int(slot) <= maximumSlots else { return false }
    return addReference(slot, limit: OwnerWord.maximumCount)
  }

  private func addReference(_ slot: SlotNumber, limit: UInt64) -> Bool {
    let owner = descriptor(slot)
    var bits = owner.pointee.owner.load(ordering: .relaxed)
    while true {
      let count = OwnerWord(bits: bits).count
      if count == 0 || count >= limit { return false }
      // Acquiring: the word read next is not older than the life of the slot that was retained.
      let (done, found) = owner.pointee.owner.weakCompareExchange(
        expected: bits, desired: bits + 1, successOrdering: .acquiring, failureOrdering: .relaxed)
      if done { return true }
      bits = found
    }
  }

  /// Takes a reference back; returns whether it was the last, in which case the slot is the caller's alone.
  ///
  /// Releasing, so that what this thread did to the slot comes first; acquiring, so that the last one sees
  /// what all others did.
  func release(_ slot: SlotNumber) -> Bool {
    let (old, _) = descriptor(slot).pointee.owner.wrappingSubtract(1, ordering: .acquiringAndReleasing)
    precondition(OwnerWord(bits: old).count > 0, "released a slot that has no references")
    return OwnerWord(bits: old).count == 1
  }

  /// Names another holder. The caller holds a reference.
  func setOwner(_ slot: SlotNumber, target: UInt32, virtualPage: UInt64) {
    let owner = descriptor(slot)
    var bits = owner.pointee.owner.load(ordering: .relaxed)
    while true {
      let count = OwnerWord(bits: bits).count
      assert(count > 0)
      let new = OwnerWord(count: count, target: target, virtualPage: virtualPage)
      // Relaxed: nothing else is published by it; the count's ordering lives in retain and release, whose
      // release sequence this exchange continues.
      let (done, found) = owner.pointee.owner.weakCompareExchange(
        expected: bits, desired: new.bits, ordering: .relaxed)
      if done { return }
      bits = found
    }
  }

  /// The owner word as it is now. Target and page are a hint.
  func owner(_ slot: SlotNumber) -> OwnerWord {
    OwnerWord(bits: descriptor(slot).pointee.owner.load(ordering: .relaxed))
  }

  // MARK: Backing

  /// The word as it is now. Acquiring: what it points to has been written completely.
  func word(_ slot: SlotNumber) -> SlotWord {
    SlotWord(bits: descriptor(slot).pointee.word.load(ordering: .acquiring))
  }

  /// Whether the word still is `word`, for a reader that has copied what it points to.
  ///
  /// The fence keeps the copy's reads before this one; it pairs with the one in `SharedBytes.copyIn`.
  func isStill(_ slot: SlotNumber, _ word: SlotWord) -> Bool {
    atomicMemoryFence(ordering: .acquiring)
    return descriptor(slot).pointee.word.load(ordering: .relaxed) == word.bits
  }

  /// First backing of a slot that was just allocated: the free word it still has, for its version.
  func freshWord(_ slot: SlotNumber) -> SlotWord {
    SlotWord(bits: descriptor(slot).pointee.word.load(ordering: .relaxed))
  }

  /// Publishes the first backing of a slot nobody else can change yet. Releasing: the content comes first.
  func publish(_ slot: SlotNumber, _ word: SlotWord) {
    descriptor(slot).pointee.word.store(word.bits, ordering: .releasing)
  }

  /// Re-points a slot the caller holds, if its word still is `word`.
  ///
  /// Releasing: the new content comes before the word. Acquiring: what is freed afterwards was not reused
  /// before. Strong, since a failure means that the work was in vain.
  func replace(_ slot: SlotNumber, _ word: SlotWord, with new: SlotWord) -> Bool {
    atomicMemoryFence(ordering: .acquiring)
    return descriptor(slot).pointee.word.compareExchange(
      expected: word.bits, desired: new.bits, ordering: .acquiringAndReleasing
    ).exchanged
  }
}
