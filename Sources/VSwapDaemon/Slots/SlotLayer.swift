import Synchronization

/// What a load found.
enum LoadResult: Equatable {
  /// A page of zeros.
  case zero
  /// An uncompressed page: it was evicted recently.
  case cached
  /// A compressed (or raw) page.
  case pool
  /// It lies in a swap area, where the word says. Read it there, then `finishRead`.
  case area(SlotWord)
  /// The content cannot be had; nothing was written that may be used.
  case lost
}

/// What became of the oldest cached page.
enum CompressOutcome {
  /// It is in the pool now, or, a clean copy, where it was before.
  case compressed
  /// The cache is empty.
  case nothing
  /// It was faulted in, or is about to be; take the next one.
  case stale
  /// The pool may not grow; the page is the oldest again.
  case poolFull
}

/// The virtual slot layer: pages come in, get a number, and can be had back by it; what holds them in
/// between (nothing, a frame of the swap cache, an object of the compressed pool) changes underneath.
///
/// A trivial handle. Any number of threads may call anything but `create` and `destroy`, at any time.
///
/// ## Who may do what
///
/// | from   | to     | by                      | holding                                       |
/// |--------|--------|-------------------------|-----------------------------------------------|
/// | free   | zero   | `store`                 | the slot, just popped from the free list      |
/// | free   | cached | `store`                 | the same                                      |
/// | cached | pool   | `compressOldest`        | a reference; by exchange of the exact word    |
/// | pool, area | cached | `evictCopy`         | a reference; by exchange of the exact word    |
/// | cached | pool, area | `uncover`           | a reference; by exchange of the exact word    |
/// | cached | cached | `detachBeneath`         | a reference; by exchange of the exact word    |
/// | pool   | pool   | `compact`               | a reference; by exchange of the exact word    |
/// | pool   | area   | `placeInArea`           | a reference; by exchange of the exact word    |
/// | area   | area   | `placeInArea` (cleaning)| a reference; by exchange of the exact word    |
/// | area   | pool   | `placeInPool` (swapoff) | a reference; by exchange of the exact word    |
/// | pool   | lost   | `load`, broken object   | a reference; by exchange of the exact word    |
/// | area   | lost   | `loseArea`, failed read | a reference; by exchange of the exact word    |
/// | any    | free   | `release` of the last   | the last reference, hence nobody else does    |
///
/// 1. *A word only changes by who holds a reference* (or by who took the last one). So a slot that somebody
///    holds is never freed, and who takes the last reference is alone with it: no exchange can be under way.
/// 2. *A backing is freed only by who removed it from the word*: by a successful exchange, or as the last.
///    A word names a backing only after it is written completely (releasing exchange, acquiring load), and
///    of two workers with the same page one exchange succeeds; the other frees the copy it made itself.
/// 3. *A load copies first and asks afterwards.* It copies from the frame or object to private memory, then
///    looks whether the word is unchanged, version included. If so, nothing was freed before the copy was
///    complete; if not, what it copied is thrown away unseen and it starts again. Decompression works on the
///    private copy, so zstd never sees bytes that change. The fences pair as follows: the backing's next user
///    got it from a free list after the word had changed, and executes a releasing fence before it writes; a
///    load that saw any such byte executes an acquiring fence and then reads the word: changed.
/// 4. *The version* makes "unchanged" mean it. While the loader holds its reference the word goes from
///    cached to pool once, and then from pool to pool; 2^17 moves during one copy would be needed.
/// 5. *Workers know slots by numbers that may be stale* (FIFO entries, back references of objects). They take
///    a reference first, which fails for a free slot, and then compare the word with what they expect.
///    Whatever became of the slot before, from there on rule 1 protects them. An object that was allocated
///    but not yet published has a word that does not name it, so compaction leaves it alone.
/// 6. A load never waits for a worker: it retries only because a worker made progress.
///
/// Locks (FIFO of the cache, classes of the pool, block list) are only held for a few list operations. None
/// is held while another one of a different object is taken, except class before block list. Loads take none;
/// the last release of a pool object takes its class's.
///
/// A crash at any point leaves nothing but frames, objects and slots that no word, or no page table, names:
/// content is written before the word that names it, and the word is changed before its content is freed.
struct SlotLayer: @unchecked Sendable {
  /// Mapped counters, all relaxed: they are figures, nothing is decided by them.
  private struct Counters: ~Copyable {
    let cachedPages: Atomic<Int>
    let zeroPages: Atomic<Int>
    let lostPages: Atomic<Int>
    /// Pages that were ever compressed, and what they became.
    let storedPages: Atomic<Int>
    let storedBytes: Atomic<Int>
    /// Resident pages that have a clean copy, and copies that a page came back to.
    let copies: Atomic<Int>
    let reusedCopies: Atomic<Int>
    /// Class at which the next compaction starts.
    let compactionCursor: Atomic<Int>
  }

  let table: SlotTable
  let cache: SwapCache
  let pool: CompressedPool
  let areas: AreaTable
  /// Objects of the pool in the order they came; and those that do not compress, which go to an area before them.
  let order: WritebackOrder
  let incompressible: WritebackOrder
  /// What the pages were that came back and have their slots still.
  let hashes: CopyHashes
  /// What the pages of a group have in common.
  let dictionaries: Dictionaries
  /// Who may take how many frames.
  let budget: FrameBudget
  private let control: Mapping

  // MARK: Life

  /// A layer for `maximumSlots` (1 ..< 2^31) pages, of which `cacheFrames` (1 ..< 2^30) uncompressed; its
  /// pool has an address range of `poolReserveBytes` (up to 64 GiB) and at most `poolLimitBytes` of RAM.
  ///
  /// Takes a few pages of RAM until it is used. Throws what memfd_create, ftruncate or mmap say.
  static func create(
    maximumSlots: Int, cacheFrames: Int, poolReserveBytes: Int, poolLimitBytes: Int
  ) throws(KernelError) -> SlotLayer {
    var made: [() -> Void] = []
    do throws(KernelError) {
      let table = try SlotTable.create(maximumSlots: maximumSlots)
      made.append { table.destroy() }
      let cache = try SwapCache.create(capacity: cacheFrames)
      made.append { cache.destroy() }
      let pool = try CompressedPool.create(reserveBytes: poolReserveBytes, limitBytes: poolLimitBytes)
      made.append { pool.destroy() }
      let order = try WritebackOrder.create()
      made.append { order.destroy() }
      let incompressible = try WritebackOrder.create()
      made.append { incompressible.destroy() }
      let hashes = try CopyHashes.create(maximumSlots: maximumSlots)
      made.append { hashes.destroy() }
      let dictionaries = try Dictionaries.create()
      made.append { dictionaries.destroy() }
      let control = try Mapping.create(name: "vswapd-slot-layer", length: pageSize)
      let areas = AreaTable.create()
      return SlotLayer(
        table: table, cache: cache, pool: pool, areas: areas, order: order, incompressible: incompressible,
        hashes: hashes, dictionaries: dictionaries, budget: .create(cache: cache, table: table, areas: areas), control: control)
    } catch {
      for destroy in made { destroy() }
      throw error
    }
  }

  /// Gives all memory back. Nobody may use a copy of the handle any more.
  func destroy() {
    table.destroy()
    cache.destroy()
    pool.destroy()
    areas.destroy()
    order.destroy()
    incompressible.destroy()
    hashes.destroy()
    dictionaries.destroy()
    budget.destroy()
    control.destroy()
  }

  private var counters: UnsafeMutablePointer<Counters> {
    control.base.assumingMemoryBound(to: Counters.self)
  }

  // MARK: Pages

  /// Copies a page (4096 bytes, 8-byte aligned) and returns its slot, with one reference.
  ///
  /// A page of zeros takes no storage, any other one a frame. nil: no slot or no frame is free; the caller
  /// keeps the page. `target` is below 8192, `virtualPage` below 2^36.
  func store(page: UnsafeRawPointer, target: UInt32, virtualPage: UInt64) -> SlotNumber? {
    if SharedBytes.isZero(page: page) {
      guard let slot = table.allocate(target: target, virtualPage: virtualPage) else { return nil }
      table.publish(slot, .zero(after: table.freshWord(slot)))
      counters.pointee.zeroPages.add(1, ordering: .relaxed)
      return slot
    }
    guard let frame = cache.allocate() else { return nil }
    guard let slot = table.allocate(target: target, virtualPage: virtualPage) else {
      cache.free(frame)
      return nil
    }
    SharedBytes.copyIn(from: page, to: cache.bytes(frame), count: pageSize)
    Interleaving.point()
    cache.setSlot(frame, slot)
    counters.pointee.cachedPages.add(1, ordering: .relaxed)
    table.publish(slot, .cached(frame: frame, after: table.freshWord(slot)))
    Interleaving.point()
    cache.pushNewest(frame)
    return slot
  }

  /// Reads a page into 4096 private bytes (8-byte aligned) at `into`. The caller holds a reference.
  ///
  /// Lock-free; it never blocks on a worker. See rule 3 above.
  func load(_ slot: SlotNumber, into: UnsafeMutableRawPointer, codec: Codec) -> LoadResult {
    while true {
      let word = table.word(slot)
      Interleaving.point()
      switch word.kind {
      case .zero:
        into.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
        return .zero
      case .cached:
        SharedBytes.copyOut(from: cache.bytes(word.frame), to: into, count: pageSize)
        Interleaving.point()
        if table.isStill(slot, word) { return .cached }
      case .pool:
        if let result = loadObject(slot, word, into: into, codec: codec) { return result }
      case .free:
        assertionFailure("loaded a slot without a reference")
        return .lost
      case .area:
        return .area(word)
      case .lost:
        return .lost
      }
    }
  }

  /// Reads a pool object; nil when it was moved meanwhile.
  private func loadObject(
    _ slot: SlotNumber, _ word: SlotWord, into: UnsafeMutableRawPointer, codec: Codec
  ) -> LoadResult? {
    let length = word.poolLength
    let isRaw = length == pageSize
    let copy = isRaw ? into : codec.page
    SharedBytes.copyOut(from: pool.bytes(word.poolOffset), to: copy, count: length)
    Interleaving.point()
    guard table.isStill(slot, word) else { return nil }
    if isRaw || decompress(copy, length, into: into, codec: codec) { return .pool }
    // These are the bytes that were written for this page, and they make no sense: memory is broken.
    markLost(slot, word)
    return nil
  }

  /// Decompresses private bytes with the dictionary that they name. false: they make no sense, or that dictionary has gone (see
  /// `Dictionaries`: then nobody wants the page any more).
  func decompress(_ source: UnsafeRawPointer, _ length: Int, into: UnsafeMutableRawPointer, codec: Codec) -> Bool {
    let number = Codec.dictionary(of: source, length: length)
    if number == 0 { return codec.decompress(source, length: length, into: into) }
    guard let dictionary = dictionaries.borrow(number) else { return false }
    let isWhole = codec.decompress(source, length: length, into: into, with: dictionary)
    dictionaries.giveBack(number)
    return isWhole
  }

  /// Gives up the content of a slot the caller holds, if its word still is `word`.
  private func markLost(_ slot: SlotNumber, _ word: SlotWord) {
    guard table.replace(slot, word, with: .lost(after: word)) else { return }
    countLost()
    freeBacking(word)
  }

  // MARK: References

  /// One more page table entry that refers to the slot; the caller holds one already. false: it has 32512,
  /// the most there can be; the caller restores the page instead of sharing it.
  func retain(_ slot: SlotNumber) -> Bool {
    table.retain(slot)
  }

  /// Takes a reference back, which the caller held. The last one frees the slot and what it is backed by.
  func release(_ slot: SlotNumber) {
    guard table.release(slot) else { return }
    let word = table.word(slot)
    Interleaving.point()
    table.markFree(slot, after: word)
    Interleaving.point()
    freeBacking(word)
    Interleaving.point()
    table.pushFree(slot)
  }

  func countLost() { counters.pointee.lostPages.add(1, ordering: .relaxed) }

  /// Frees the frame of a cached page, and leaves what may lie beneath alone.
  func freeFrame(_ word: SlotWord) {
    counters.pointee.cachedPages.subtract(1, ordering: .relaxed)
    cache.free(word.frame)
  }

  func countCached() { counters.pointee.cachedPages.add(1, ordering: .relaxed) }
  func countCopies(_ difference: Int) { counters.pointee.copies.add(difference, ordering: .relaxed) }
  func countReusedCopy() { counters.pointee.reusedCopies.add(1, ordering: .relaxed) }

  /// Frees what `word` names, which no slot does any more.
  func freeBacking(_ word: SlotWord) {
    switch word.kind {
    case .cached:
      // Nobody else can have a use for the frame, so what is read here is this slot's.
      let beneath = cache.beneath(word.frame)
      freeFrame(word)
      if let beneath { freeBacking(beneath) }
    case .pool:
      pool.free(word.poolOffset, length: word.poolLength)
    case .zero:
      counters.pointee.zeroPages.subtract(1, ordering: .relaxed)
    case .lost:
      counters.pointee.lostPages.subtract(1, ordering: .relaxed)
    case .area:
      areas.release(word.place)
    case .free:
      assertionFailure("freed a backing that does not exist")
    }
  }

  /// Says which target's page table holds the slot, and where; a hint. The caller holds a reference.
  func setOwner(_ slot: SlotNumber, target: UInt32, virtualPage: UInt64) {
    table.setOwner(slot, target: target, virtualPage: virtualPage)
  }

  /// Target and page that were last said to hold the slot (a hint), and the number of references.
  func owner(of slot: SlotNumber) -> OwnerWord {
    table.owner(slot)
  }

  // MARK: Workers

  /// Takes the oldest cached page and compresses it into the pool; raw, if it does not compress.
  ///
  /// Neither fault nor store waits for it. Returns without effect in all cases but `compressed`.
  func compressOldest(codec: Codec) -> CompressOutcome {
    guard let (frame, slot) = cache.popOldest() else { return .nothing }
    Interleaving.point()
    guard table.tryRetain(slot) else { return .stale }
    defer { release(slot) }
    let word = table.word(slot)
    guard word.kind == .cached, word.frame == frame else { return .stale }
    Interleaving.point()
    if cache.beneath(frame) != nil {
      guard let new = uncover(slot, word) else { return .stale }
      if new.kind == .pool { noteInPool(slot, new) }
      return .compressed
    }

    // A copy, since another worker may have got the same page by a stale entry and free the frame; then the
    // exchange below fails. zstd must not see bytes change.
    SharedBytes.copyOut(from: cache.bytes(frame), to: codec.page, count: pageSize)
    let (bytes, length) = compressed(codec, target: table.owner(slot).target) ?? (UnsafeRawPointer(codec.page), pageSize)
    guard let offset = pool.allocate(length: length, slot: slot) else {
      cache.putBackOldest(frame)
      return .poolFull
    }
    SharedBytes.copyIn(from: bytes, to: pool.bytes(offset), count: length)
    Interleaving.point()
    let new = SlotWord.pool(offset: offset, length: length, after: word)
    guard table.replace(slot, word, with: new) else {
      pool.free(offset, length: length)
      return .stale
    }
    Interleaving.point()
    freeFrame(word)
    noteInPool(slot, new)
    counters.pointee.storedPages.add(1, ordering: .relaxed)
    counters.pointee.storedBytes.add(length, ordering: .relaxed)
    return .compressed
  }

  /// The codec's page, compressed with the dictionary of its target's group. nil: it does not compress.
  private func compressed(_ codec: Codec, target: UInt32) -> (bytes: UnsafeRawPointer, length: Int)? {
    let number = dictionaries.number(forTarget: target)
    Interleaving.point()
    guard let dictionary = dictionaries.borrow(number) else {
      let result = codec.compress(codec.page)
      if result != nil { dictionaries.saw(codec.page, ofTarget: target) }
      return result
    }
    let result = codec.compress(codec.page, with: dictionary)
    dictionaries.giveBack(number)
    return result
  }

  /// A new object is the newest of the pool.
  func noteInPool(_ slot: SlotNumber, _ word: SlotWord) {
    let ring = word.poolLength == pageSize ? incompressible : order
    ring.push(slot, word, objects: pool.objects, table: table)
  }

  /// Moves at most `maximumMoves` objects from sparse blocks into fuller ones, so that blocks become empty
  /// and go back to the system; returns how many it moved (0: nothing to gain).
  ///
  /// Each call goes on with the class where the last one stopped. It also gives the RAM of empty blocks back
  /// that frees have left, so that faults need not make that system call.
  func compact(maximumMoves: Int) -> Int {
    pool.trim()
    var moves = 0
    let start = counters.pointee.compactionCursor.load(ordering: .relaxed)
    for step in 0..<CompressedPool.classCount {
      let sizeClass = (start + step) % CompressedPool.classCount + 1
      counters.pointee.compactionCursor.store(sizeClass - 1, ordering: .relaxed)
      while moves < maximumMoves {
        let (moved, emptied) = emptySparsest(sizeClass, maximumMoves: maximumMoves - moves)
        moves += moved
        if !emptied { break }
      }
      if moves >= maximumMoves { break }
    }
    return moves
  }

  /// Empties the sparsest block of a class; returns how many objects moved, and whether all did.
  private func emptySparsest(_ sizeClass: Int, maximumMoves: Int) -> (moved: Int, emptied: Bool) {
    guard let (block, carved) = pool.isolateSparsest(sizeClass) else { return (0, false) }
    var moved = 0
    objects: for index in 0..<carved where moved < maximumMoves {
      guard let (slot, offset) = pool.object(index, in: block, sizeClass) else { continue }
      Interleaving.point()
      switch move(slot, from: offset) {
      case .moved: moved += 1
      case .notHere: continue
      case .noRoom: break objects
      }
    }
    return (moved, pool.rejoin(block, sizeClass))
  }

  /// What became of an object that should move.
  private enum Move {
    case moved
    /// It is being freed, or not yet published.
    case notHere
    /// All other blocks of the class are full.
    case noRoom
  }

  /// Moves one object to another block, if it still is what backs the slot.
  private func move(_ slot: SlotNumber, from offset: UInt32) -> Move {
    guard table.tryRetain(slot) else { return .notHere }
    defer { release(slot) }
    var word = table.word(slot)
    // Otherwise one page in the cache would keep its block, and with it its size class, as it is.
    if word.kind == .cached, let beneath = cache.beneath(word.frame), beneath.kind == .pool, beneath.poolOffset == offset,
      let uncovered = uncover(slot, word)
    {
      noteInPool(slot, uncovered)
      word = uncovered
    }
    guard word.kind == .pool, word.poolOffset == offset else { return .notHere }
    Interleaving.point()
    let length = word.poolLength
    guard let target = pool.allocateForMove(length: length, slot: slot) else { return .noRoom }
    SharedBytes.copyIn(from: pool.bytes(offset), to: pool.bytes(target), count: length)
    Interleaving.point()
    guard table.replace(slot, word, with: .pool(offset: target, length: length, after: word)) else {
      // Only a load that found the object broken changes the word under us, and lost pages have none.
      pool.free(target, length: length)
      return .notHere
    }
    Interleaving.point()
    pool.free(offset, length: length)
    return .moved
  }

  // MARK: Figures

  /// Frames that `store` can still use.
  var freeFrames: Int { cache.freeFrames }
  /// Pages in the swap cache.
  var cachedPages: Int { counters.pointee.cachedPages.load(ordering: .relaxed) }
  /// Resident pages that have a clean copy.
  var copies: Int { counters.pointee.copies.load(ordering: .relaxed) }
  /// Pages of zeros.
  var zeroPages: Int { counters.pointee.zeroPages.load(ordering: .relaxed) }

  /// RAM the pool's blocks may take, in bytes. Less than it has now: it stops growing, and frees nothing.
  func setPoolLimit(bytes: Int) {
    pool.setLimit(bytes: bytes)
  }

  /// All figures. Costs some system calls (fstat).
  func statistics() -> SlotStatistics {
    let objects = pool.objects
    return SlotStatistics(
      objects: objects,
      originalBytes: objects * pageSize,
      compressedBytes: pool.compressedBytes,
      arenaBytes: pool.arenaBytes,
      poolLimitBytes: pool.limitBytes,
      cachedPages: cachedPages,
      cacheCapacityPages: cache.capacity,
      zeroPages: zeroPages,
      storedPages: counters.pointee.storedPages.load(ordering: .relaxed),
      storedBytes: counters.pointee.storedBytes.load(ordering: .relaxed),
      copies: copies,
      reusedCopies: counters.pointee.reusedCopies.load(ordering: .relaxed),
      slotsInUse: table.inUse,
      lostPages: counters.pointee.lostPages.load(ordering: .relaxed),
      metadataBytes: table.metadataBytes + cache.metadataBytes + pool.metadataBytes + areas.metadataBytes
        + order.metadataBytes + incompressible.metadataBytes + hashes.metadataBytes + dictionaries.metadataBytes
        + control.allocatedBytes())
  }
}
