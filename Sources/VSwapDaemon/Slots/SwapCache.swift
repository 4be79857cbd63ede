import Synchronization

/// The swap cache: a fixed number of uncompressed 4096-byte frames, and the order they came in.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. Frames are numbered
/// 1 ... capacity; free ones form a Treiber stack with a tag against ABA, as in `SlotTable`.
///
/// The FIFO is a ring of frame numbers behind a lock, which no fault takes: a refault frees its frame and
/// leaves the ring entry behind. Entries have positions that count up; a frame is stamped with the position
/// of its latest entry, and any other entry of it is stale. So the live entries are at most as many as
/// frames, and a ring of twice as many always has room after its stale entries are swept out, which costs
/// O(1) per push in the long run.
///
/// The order is a hint. An entry that turns out to name a frame that was freed or reused meanwhile does no
/// harm: whoever pops it retains the slot and looks at its word before anything else. What does hold is
/// that a frame that stays cached has an entry, or a worker that is at work on it.
struct SwapCache: @unchecked Sendable {
  /// 16 bytes per frame.
  private struct Frame: ~Copyable {
    /// Free: next free frame, 0 at the end. In use: the slot.
    let link: Atomic<UInt32>
    /// Stamp of the live FIFO entry, 0 for none.
    let stamp: Atomic<UInt32>
    /// In use: the word of the slot's other backing, see `CleanCopies`; 0 for none.
    let beneath: Atomic<UInt64>
  }

  /// At the start of the metadata mapping.
  private struct Header: ~Copyable {
    /// Tag (upper half, counts changes) and first free frame (lower half, 0: none).
    let freeHead: Atomic<UInt64>
    /// Frames 1 ... fresh have been in use at least once.
    let fresh: Atomic<UInt64>
    let inUse: Atomic<Int>
  }

  /// In the same page, a cache line further; under `fifo`. Positions of the oldest entry, and after the
  /// newest.
  private struct Ends {
    var head: UInt64
    var tail: UInt64
  }

  /// Frames.
  let capacity: Int
  private let ringMask: UInt64
  private let frames: Mapping
  private let metadata: Mapping
  private let fifo: Lock

  /// A cache of `capacity` (1 ..< 2^30) frames, which take RAM from their first use on.
  static func create(capacity: Int) throws(KernelError) -> SwapCache {
    precondition(capacity > 0 && capacity < 1 << 30)
    precondition(MemoryLayout<Frame>.stride == 16)
    var ringLength = 8
    while ringLength < 2 * capacity { ringLength *= 2 }
    let frames = try Mapping.create(name: "vswapd-cache", length: (capacity + 1) * pageSize)
    do {
      let length = pageSize + (capacity + 1) * MemoryLayout<Frame>.stride + ringLength * 4
      let metadata = try Mapping.create(name: "vswapd-cache-records", length: length)
      return SwapCache(
        capacity: capacity, ringMask: UInt64(ringLength - 1), frames: frames, metadata: metadata,
        fifo: .create())
    } catch {
      frames.destroy()
      throw error
    }
  }

  /// Gives all frames their RAM, before the first eviction has to wait for it page by page.
  func populate() {
    frames.populate(offset: 0, length: frames.length)
  }

  private init(capacity: Int, ringMask: UInt64, frames: Mapping, metadata: Mapping, fifo: Lock) {
    self.capacity = capacity
    self.ringMask = ringMask
    self.frames = frames
    self.metadata = metadata
    self.fifo = fifo
    // In the middle, since an entry that is put back moves the head down.
    ends.pointee.head = 1 << 40
    ends.pointee.tail = 1 << 40
  }

  /// Gives the memory back. Nobody may use a copy of the handle any more.
  func destroy() {
    frames.destroy()
    metadata.destroy()
    fifo.destroy()
  }

  private var header: UnsafeMutablePointer<Header> {
    metadata.base.assumingMemoryBound(to: Header.self)
  }

  private var ends: UnsafeMutablePointer<Ends> {
    (metadata.base + 64).assumingMemoryBound(to: Ends.self)
  }

  private func record(_ frame: UInt32) -> UnsafeMutablePointer<Frame> {
    assert(frame > 0 && Int(frame) <= capacity, "frame out of range")
    return (metadata.base + pageSize).assumingMemoryBound(to: Frame.self) + Int(frame)
  }

  private func ring(_ position: UInt64) -> UnsafeMutablePointer<UInt32> {
    let records = (capacity + 1) * MemoryLayout<Frame>.stride
    let entries = (metadata.base + pageSize + records).assumingMemoryBound(to: UInt32.self)
    return entries + Int(position & ringMask)
  }

  /// The 4096 bytes of a frame.
  func bytes(_ frame: UInt32) -> UnsafeMutableRawPointer {
    assert(frame > 0 && Int(frame) <= capacity, "frame out of range")
    return frames.base + Int(frame) * pageSize
  }

  /// Frames that hold no page.
  var freeFrames: Int { max(0, capacity - header.pointee.inUse.load(ordering: .relaxed)) }

  /// RAM held by frame records and the ring, in bytes.
  var metadataBytes: Int { metadata.allocatedBytes() }

  // MARK: Frames

  /// A frame for the caller alone; nil when all are in use.
  func allocate() -> UInt32? {
    guard let frame = popFree() ?? takeFresh() else { return nil }
    header.pointee.inUse.add(1, ordering: .relaxed)
    return frame
  }

  /// Gives a frame back that no slot's word names any more. Its FIFO entry becomes stale.
  func free(_ frame: UInt32) {
    record(frame).pointee.stamp.store(0, ordering: .relaxed)
    Interleaving.point()
    var head = header.pointee.freeHead.load(ordering: .relaxed)
    while true {
      record(frame).pointee.link.store(UInt32(truncatingIfNeeded: head), ordering: .relaxed)
      // Releasing: the link, the stamp and all reads of the content, before the frame can be popped.
      let (done, found) = header.pointee.freeHead.weakCompareExchange(
        expected: head, desired: Self.retagged(head, frame), successOrdering: .releasing,
        failureOrdering: .relaxed)
      if done { break }
      head = found
    }
    Interleaving.point()
    // Not before it can be popped: who reserves frames by this count must find them.
    header.pointee.inUse.subtract(1, ordering: .relaxed)
  }

  private func popFree() -> UInt32? {
    var head = header.pointee.freeHead.load(ordering: .acquiring)
    while true {
      let frame = UInt32(truncatingIfNeeded: head)
      if frame == 0 { return nil }
      let next = record(frame).pointee.link.load(ordering: .relaxed)
      Interleaving.point()
      // Acquiring: pairs with the push of this frame (every exchange since continues its release sequence).
      let (done, found) = header.pointee.freeHead.weakCompareExchange(
        expected: head, desired: Self.retagged(head, next), successOrdering: .acquiring,
        failureOrdering: .acquiring)
      if done { return frame }
      head = found
    }
  }

  private func takeFresh() -> UInt32? {
    var fresh = header.pointee.fresh.load(ordering: .relaxed)
    while fresh < UInt64(capacity) {
      let (done, found) = header.pointee.fresh.weakCompareExchange(
        expected: fresh, desired: fresh + 1, ordering: .relaxed)
      if done { return UInt32(truncatingIfNeeded: fresh + 1) }
      fresh = found
    }
    return nil
  }

  private static func retagged(_ head: UInt64, _ frame: UInt32) -> UInt64 {
    (head >> 32 &+ 1) << 32 | UInt64(frame)
  }

  // MARK: Order

  /// Says whose page a frame holds, and which word the slot has had if that backing is kept; before the slot's word names the frame.
  func setSlot(_ frame: UInt32, _ slot: SlotNumber, beneath: SlotWord? = nil) {
    record(frame).pointee.link.store(slot, ordering: .relaxed)
    record(frame).pointee.beneath.store(beneath?.bits ?? 0, ordering: .relaxed)
  }

  /// The kept backing of the slot whose page a frame holds. It means nothing until an exchange of the slot's word, which names the frame, shows
  /// that the frame was that slot's all the time.
  func beneath(_ frame: UInt32) -> SlotWord? {
    let bits = record(frame).pointee.beneath.load(ordering: .relaxed)
    return bits == 0 ? nil : SlotWord(bits: bits)
  }

  /// Appends a frame, whose slot's word names it already, as the youngest.
  func pushNewest(_ frame: UInt32) {
    fifo.lock()
    if ends.pointee.tail &- ends.pointee.head > ringMask { sweep() }
    let position = ends.pointee.tail
    ends.pointee.tail = position + 1
    place(frame, at: position)
    fifo.unlock()
  }

  /// Takes the oldest frame that is not known to be stale, and the slot it was last used for. The caller
  /// now answers for it: compresses it, finds it freed, or puts it back.
  func popOldest() -> (frame: UInt32, slot: SlotNumber)? {
    fifo.lock()
    defer { fifo.unlock() }
    while ends.pointee.head != ends.pointee.tail {
      let position = ends.pointee.head
      ends.pointee.head = position + 1
      let frame = ring(position).pointee
      guard isLive(frame, at: position) else { continue }
      Interleaving.point()
      record(frame).pointee.stamp.store(0, ordering: .relaxed)
      // A frame that is being freed under our eyes may show a free list link instead: any number at all.
      return (frame, record(frame).pointee.link.load(ordering: .relaxed))
    }
    return nil
  }

  /// Puts a popped frame back as the oldest. The caller still holds its slot.
  func putBackOldest(_ frame: UInt32) {
    fifo.lock()
    if ends.pointee.tail &- ends.pointee.head > ringMask { sweep() }
    let position = ends.pointee.head - 1
    ends.pointee.head = position
    place(frame, at: position)
    fifo.unlock()
  }

  private func place(_ frame: UInt32, at position: UInt64) {
    ring(position).pointee = frame
    record(frame).pointee.stamp.store(Self.stamp(position), ordering: .relaxed)
  }

  private func isLive(_ frame: UInt32, at position: UInt64) -> Bool {
    record(frame).pointee.stamp.load(ordering: .relaxed) == Self.stamp(position)
  }

  /// Never 0, and different for any two positions of a ring (which is shorter than 2^32 - 1).
  private static func stamp(_ position: UInt64) -> UInt32 {
    UInt32(truncatingIfNeeded: position % 0xFFFF_FFFF) + 1
  }

  /// Drops the stale entries of a full ring, keeping the order. Under `fifo`.
  private func sweep() {
    var kept = ends.pointee.head
    for position in ends.pointee.head..<ends.pointee.tail {
      let frame = ring(position).pointee
      guard isLive(frame, at: position) else { continue }
      // A frame freed since the line above gets a live-looking entry: popped in vain once, that is all.
      place(frame, at: kept)
      kept += 1
    }
    ends.pointee.tail = kept
    assert(kept &- ends.pointee.head <= UInt64(capacity), "more live entries than frames")
  }
}
