/// One target's map from virtual pages to entries (`PageTableEntry`): chunks of 512 entries, and a directory
/// that finds them.
///
/// A trivial struct, to be kept in one place (growth changes its fields: a copy is stale afterwards). Only
/// for who holds the target's lock. Pages that have entries are below `addressablePages`; what lies above has none, and ranges may
/// reach there.
///
/// The directory is a hash table with linear probing, at most three quarters full, in a mapping of its own;
/// deletion shifts the followers back (Knuth, TAOCP vol. 3, 6.4, algorithm R), so there are no tombstones. A
/// chunk is in it as long as it has a non-zero entry.
///
/// Going through a sparse address space in order needs the successor of a chunk number. First the next 64
/// numbers are probed; then the directory is scanned for the smallest greater one; when that happens again
/// and again, the numbers are sorted once, into the second half of the directory's mapping. That list
/// outlives deletions (a number that is gone is skipped), but not insertions.
struct PageTable: @unchecked Sendable {
  /// 8 bytes: a chunk number (page / 512) plus one, 0 for an empty place; and the chunk in the arena.
  private struct Place {
    var key: UInt32
    var chunk: UInt32
  }

  private static let chunkShift: UInt64 = 9
  private static let chunkMask: UInt64 = 511
  private static let initialCapacity = 512
  /// Chunk numbers to try before the directory is scanned.
  private static let probes: UInt64 = 64
  /// Scans since the last insertion after which sorting pays.
  private static let scansBeforeSort = 4

  private let arena: ChunkArena
  private let share: ChunkShare?
  private var directory: Mapping
  private var capacity: Int
  private(set) var chunkCount = 0
  /// Chunks that count as made for the fork that made this table.
  private var inheritedCount = 0
  /// Entries that are slots.
  private(set) var slotCount = 0
  /// Entries of resident pages that have clean copies.
  private(set) var copyCount = 0
  /// Sorted chunk numbers in the second half of the mapping; -1: not valid.
  private var sortedCount = -1
  private var scans = 0

  // MARK: Life

  /// An empty table; takes one page of RAM. `share`: what counts the chunks of its group.
  static func create(arena: ChunkArena, share: ChunkShare? = nil) throws(KernelError) -> PageTable {
    PageTable(arena, share, directory: try newDirectory(initialCapacity), capacity: initialCapacity)
  }

  private init(_ arena: ChunkArena, _ share: ChunkShare?, directory: Mapping, capacity: Int) {
    self.arena = arena
    self.share = share
    self.directory = directory
    self.capacity = capacity
  }

  /// Without a descriptor: a table must be able to grow, and a child to get one, when there are none left.
  private static func newDirectory(_ capacity: Int) throws(KernelError) -> Mapping {
    try Mapping.anonymous(length: capacity * 12)
  }

  /// Releases all slots and copies, and gives the memory back, held or not.
  mutating func destroy(layer: SlotLayer) {
    _ = removeRange(from: 0, below: addressablePages, layer: layer)
    for index in 0..<capacity where places[index].key != 0 { giveBack(places[index].chunk) }
    directory.destroy()
  }

  /// A table with the same entries for the `target` that was forked: every slot gets one more reference, and
  /// keeps its owner; resident pages are resident in the child, too, but clean copies stay the parent's.
  ///
  /// - Throws: EOVERFLOW if a slot is shared too often, ENOMEM if there are no chunks, or what the kernel
  ///   says; nothing is retained then.
  func clone(layer: SlotLayer, target: UInt32) throws(KernelError) -> PageTable {
    let new = try Self.newDirectory(Self.initialCapacity)
    var copy = PageTable(arena, share, directory: new, capacity: Self.initialCapacity)
    for index in 0..<capacity where places[index].key != 0 && arena.used(places[index].chunk) > 0 {
      let from = arena.entries(places[index].chunk)
      let first = UInt64(places[index].key - 1) << Self.chunkShift
      guard let into = copy.makeChunk(first >> Self.chunkShift, for: .fork) else {
        copy.destroy(layer: layer)
        throw KernelError(call: "clone", code: KernelError.noMemory)
      }
      for offset in 0..<ChunkArena.entriesPerChunk where from[offset] != 0 {
        if PageTableEntry.isSlot(from[offset]), !layer.retain(from[offset]) {
          copy.destroy(layer: layer)
          throw KernelError(call: "clone", code: KernelError.overflow)
        }
        let isCopied = PageTableEntry.copy(from[offset]) != PageTableEntry.none
        copy.write(into, offset, isCopied ? PageTableEntry.withCopy(from[offset], PageTableEntry.none) : from[offset])
      }
    }
    return copy
  }

  /// What is kept for children.
  var descriptors: DescriptorReserve { arena.descriptors }

  /// RAM the table takes: its directory without what is sorted, and its chunks with their records. In bytes.
  var metadataBytes: Int { capacity * 8 + chunkCount * ChunkArena.bytesPerChunk }

  // MARK: Entries

  /// The entry of a page; 0 for none.
  func entry(_ vpn: UInt64) -> UInt32 {
    guard vpn < addressablePages else { return 0 }
    let chunk = find(vpn >> Self.chunkShift)
    return chunk == 0 ? 0 : arena.entries(chunk)[Int(vpn & Self.chunkMask)]
  }

  /// Changes the entry of a page; retains and releases nothing. false: there is no chunk left for it, or it cannot have an entry.
  mutating func set(_ vpn: UInt64, _ entry: UInt32) -> Bool {
    guard vpn < addressablePages else { return entry == 0 }
    let number = vpn >> Self.chunkShift
    var chunk = find(number)
    if chunk == 0 {
      if entry == 0 { return true }
      guard let new = makeChunk(number, for: .eviction) else { return false }
      chunk = new
    }
    write(chunk, Int(vpn & Self.chunkMask), entry)
    if entry == 0, arena.isIdle(chunk) { dropChunk(number) }
    return true
  }

  /// Before the pages [low, end) are told to leave: from here on, until they are let go of, `set` cannot fail for any of them, whatever
  /// events say in between. false: there is no chunk, or no room in the directory, for all of them; nothing is held then.
  mutating func hold(from low: UInt64, below end: UInt64) -> Bool {
    let (first, last) = (low >> Self.chunkShift, (end - 1) >> Self.chunkShift)
    for number in first...last {
      let found = find(number)
      guard let chunk = found != 0 ? found : makeChunk(number, for: .eviction) else {
        if number > first { letGo(from: low, below: number << Self.chunkShift) }
        return false
      }
      arena.hold(chunk)
    }
    return true
  }

  /// Ends what `hold` of the same range began.
  mutating func letGo(from low: UInt64, below end: UInt64) {
    for number in low >> Self.chunkShift...(end - 1) >> Self.chunkShift {
      let chunk = find(number)
      arena.letGo(chunk)
      if arena.isIdle(chunk) { dropChunk(number) }
    }
  }

  /// Writes an entry and keeps the counts.
  private mutating func write(_ chunk: UInt32, _ offset: Int, _ entry: UInt32) {
    let place = arena.entries(chunk) + offset
    let old = place.pointee
    place.pointee = entry
    if PageTableEntry.isSlot(old) { slotCount -= 1 }
    if PageTableEntry.isSlot(entry) { slotCount += 1 }
    if PageTableEntry.copy(old) != PageTableEntry.none { copyCount -= 1 }
    if PageTableEntry.copy(entry) != PageTableEntry.none { copyCount += 1 }
    if (old == 0) != (entry == 0) { arena.entryChanged(chunk, isNonZero: entry != 0) }
  }

  // MARK: Ranges

  /// The first page at or after `vpn`, and below `end`, that has an entry.
  mutating func next(from vpn: UInt64, below end: UInt64) -> (vpn: UInt64, entry: UInt32)? {
    let end = min(end, addressablePages)
    var cursor = vpn
    while cursor < end {
      let number = cursor >> Self.chunkShift
      if let hit = firstEntry(in: number, from: cursor, below: end) { return hit }
      guard let following = successor(of: number, through: (end - 1) >> Self.chunkShift) else { return nil }
      cursor = following << Self.chunkShift
    }
    return nil
  }

  /// The run of pages without an entry that contains `vpn`, clipped to [low, end). Empty, at `vpn`, if that
  /// page has an entry. Costs a scan of the directory only if the run is longer than 128 MiB.
  func emptyRun(
    around vpn: UInt64, from low: UInt64, below end: UInt64
  ) -> (start: UInt64, end: UInt64) {
    assert(low <= vpn && vpn < end && end <= addressablePages)
    guard entry(vpn) == 0 else { return (vpn, vpn) }
    let start = previous(before: vpn, from: low).map { $0.vpn + 1 } ?? low
    var cursor = vpn + 1
    while cursor < end {
      let number = cursor >> Self.chunkShift
      if let hit = firstEntry(in: number, from: cursor, below: end) { return (start, hit.vpn) }
      guard let following = scanForward(from: number, through: (end - 1) >> Self.chunkShift) else { break }
      cursor = following << Self.chunkShift
    }
    return (start, end)
  }

  /// Gives up the clean copies of pages in [low, end); of all pages, for when memory is short. O(pages known there).
  mutating func dropCopies(from low: UInt64 = 0, below end: UInt64 = addressablePages, layer: SlotLayer) {
    var cursor = low
    while copyCount > 0, let found = next(from: cursor, below: end) {
      cursor = found.vpn + 1
      let slot = PageTableEntry.copy(found.entry)
      guard slot != PageTableEntry.none else { continue }
      _ = set(found.vpn, PageTableEntry.withCopy(found.entry, PageTableEntry.none))
      layer.dropCopy(slot)
    }
  }

  /// Clears the entries in [low, end), releases their slots and gives up their copies; returns how many slots that were.
  mutating func removeRange(from low: UInt64, below end: UInt64, layer: SlotLayer) -> Int {
    let end = min(end, addressablePages)
    guard low < end else { return 0 }
    let (first, last) = (low >> Self.chunkShift, (end - 1) >> Self.chunkShift)
    var released = 0
    if last - first < UInt64(capacity) {
      for number in first...last {
        released += clear(number, from: low, below: end, layer: layer)
      }
      return released
    }
    var index = 0
    while index < capacity {
      let key = places[index].key
      if key != 0, (first...last).contains(UInt64(key - 1)) {
        released += clear(UInt64(key - 1), from: low, below: end, layer: layer)
      }
      // A deletion moves a follower to this place, or one from the beginning that has been looked at.
      if places[index].key == key { index += 1 }
    }
    return released
  }

  /// Moves the entries of [from, from + count) to [to, to + count), as mremap(2) did with the pages. Slots of
  /// pages that were at the destination are released first; the ones that moved get the new page as their
  /// owner, unless they are another target's as well.
  ///
  /// false: there are not enough chunks, or a page would come to where none can have an entry. The destination is empty then, but for what
  /// is source as well; the source is unchanged. The ranges may overlap.
  mutating func moveRange(
    from: UInt64, to: UInt64, count: UInt64, layer: SlotLayer, target: UInt32
  ) -> Bool {
    guard from != to, count > 0 else { return true }
    // The destination, except what is also source. One of the two is empty if the ranges overlap.
    let (before, after) = to < from ? (min(to + count, from), to + count) : (to, max(to, from + count))
    _ = removeRange(from: to, below: before, layer: layer)
    _ = removeRange(from: after, below: to + count, layer: layer)
    // Nothing is known of what lies above.
    let count = from < addressablePages ? min(count, addressablePages - from) : 0
    guard reserve(from: from, to: to, count: count) else { return false }
    // In the direction that reads an overlapping page before it is overwritten.
    if to < from {
      var cursor = from
      while let (vpn, entry) = next(from: cursor, below: from + count) {
        relocate(vpn, to: to + (vpn - from), entry, layer, target)
        cursor = vpn + 1
      }
    } else {
      var end = from + count
      while let (vpn, entry) = previous(before: end, from: from) {
        relocate(vpn, to: to + (vpn - from), entry, layer, target)
        end = vpn
      }
    }
    dropEmptyChunks(from: from, below: from + count)
    return true
  }

  /// Moves one entry; both pages have their chunks, and keep them even if they become empty.
  private mutating func relocate(
    _ vpn: UInt64, to new: UInt64, _ entry: UInt32, _ layer: SlotLayer, _ target: UInt32
  ) {
    write(find(new >> Self.chunkShift), Int(new & Self.chunkMask), entry)
    write(find(vpn >> Self.chunkShift), Int(vpn & Self.chunkMask), 0)
    let slot = PageTableEntry.held(entry)
    guard slot != PageTableEntry.none else { return }
    // A worker may hold a reference for a moment: then what counts is whether the owner is this target.
    let owner = layer.owner(of: slot)
    if owner.count == 1 || owner.target == target {
      layer.setOwner(slot, target: target, virtualPage: new)
    }
  }

  /// Makes the chunks that a move needs, so that it cannot stop half-way; takes them back if it fails.
  private mutating func reserve(from: UInt64, to: UInt64, count: UInt64) -> Bool {
    var cursor = from
    while let (vpn, _) = next(from: cursor, below: from + count) {
      let number = (to + (vpn - from)) >> Self.chunkShift
      if number >= addressablePages >> Self.chunkShift {
        dropEmptyChunks(from: to, below: to + count)
        return false
      }
      if find(number) == 0, makeChunk(number, for: .move) == nil {
        dropEmptyChunks(from: to, below: to + count)
        return false
      }
      // On to the first source page that lands in another chunk.
      cursor = from + (((number + 1) << Self.chunkShift) - to)
    }
    return true
  }

  /// Drops the chunks of [low, end) that have no entries, which only a move leaves behind.
  private mutating func dropEmptyChunks(from low: UInt64, below end: UInt64) {
    let end = min(end, addressablePages)
    guard low < end else { return }
    let (first, last) = (low >> Self.chunkShift, (end - 1) >> Self.chunkShift)
    if last - first < UInt64(capacity) {
      for number in first...last {
        let chunk = find(number)
        if chunk != 0, arena.isIdle(chunk) { dropChunk(number) }
      }
      return
    }
    var index = 0
    while index < capacity {
      let place = places[index]
      let isCandidate = place.key != 0 && (first...last).contains(UInt64(place.key) - 1)
      if isCandidate, arena.isIdle(place.chunk) { dropChunk(UInt64(place.key) - 1) }
      if places[index].key == place.key { index += 1 }
    }
  }

  /// Clears what of one chunk is in [low, end); returns how many slots were released.
  private mutating func clear(
    _ number: UInt64, from low: UInt64, below end: UInt64, layer: SlotLayer
  ) -> Int {
    let chunk = find(number)
    guard chunk != 0 else { return 0 }
    let entries = arena.entries(chunk)
    var released = 0
    for offset in offsets(of: number, from: low, below: end) where entries[offset] != 0 {
      let entry = entries[offset]
      write(chunk, offset, 0)
      if PageTableEntry.isSlot(entry) {
        layer.release(entry)
        released += 1
      } else if PageTableEntry.copy(entry) != PageTableEntry.none {
        layer.dropCopy(PageTableEntry.copy(entry))
      }
    }
    if arena.isIdle(chunk) { dropChunk(number) }
    return released
  }

  /// Offsets in chunk `number` that are in [low, end).
  private func offsets(of number: UInt64, from low: UInt64, below end: UInt64) -> Range<Int> {
    let first = number << Self.chunkShift
    let start = max(low, first)
    let stop = min(end, first + UInt64(ChunkArena.entriesPerChunk))
    return start < stop ? Int(start - first)..<Int(stop - first) : 0..<0
  }

  private func firstEntry(
    in number: UInt64, from low: UInt64, below end: UInt64
  ) -> (vpn: UInt64, entry: UInt32)? {
    let chunk = find(number)
    guard chunk != 0 else { return nil }
    let entries = arena.entries(chunk)
    for offset in offsets(of: number, from: low, below: end) where entries[offset] != 0 {
      return (number << Self.chunkShift + UInt64(offset), entries[offset])
    }
    return nil
  }

  /// The last page before `end`, and at or after `low`, that has an entry.
  private func previous(before end: UInt64, from low: UInt64) -> (vpn: UInt64, entry: UInt32)? {
    var cursor = end
    while cursor > low {
      let number = (cursor - 1) >> Self.chunkShift
      let chunk = find(number)
      if chunk != 0 {
        let entries = arena.entries(chunk)
        for offset in offsets(of: number, from: low, below: cursor).reversed() where entries[offset] != 0 {
          return (number << Self.chunkShift + UInt64(offset), entries[offset])
        }
      }
      guard let before = scanBackward(from: number, through: low >> Self.chunkShift) else { return nil }
      cursor = (before + 1) << Self.chunkShift
    }
    return nil
  }

  // MARK: Order of chunks

  /// The smallest chunk number above `number`, up to `last`.
  private mutating func successor(of number: UInt64, through last: UInt64) -> UInt64? {
    guard sortedCount >= 0 || scans >= Self.scansBeforeSort else {
      scans += 1
      return scanForward(from: number, through: last)
    }
    if sortedCount < 0 { sortNumbers() }
    var (low, high) = (0, sortedCount)
    while low < high {
      let middle = (low + high) / 2
      if UInt64(sorted[middle]) <= number { low = middle + 1 } else { high = middle }
    }
    while low < sortedCount, UInt64(sorted[low]) <= last {
      if find(UInt64(sorted[low])) != 0 { return UInt64(sorted[low]) }
      low += 1
    }
    return nil
  }

  /// Out of line: where it is inlined its buffer counts references on the path of events.
  @inline(never)
  private mutating func sortNumbers() {
    var count = 0
    for index in 0..<capacity where places[index].key != 0 {
      sorted[count] = places[index].key - 1
      count += 1
    }
    var numbers = UnsafeMutableBufferPointer(start: sorted, count: count)
    numbers.sort()
    sortedCount = count
  }

  private func scanForward(from number: UInt64, through last: UInt64) -> UInt64? {
    guard number < last else { return nil }
    let near = min(last, number + Self.probes)
    for candidate in number + 1...near where find(candidate) != 0 {
      return candidate
    }
    guard near < last else { return nil }
    var best = UInt64.max
    for index in 0..<capacity where places[index].key != 0 {
      let candidate = UInt64(places[index].key - 1)
      if candidate > near, candidate < best { best = candidate }
    }
    return best <= last ? best : nil
  }

  private func scanBackward(from number: UInt64, through first: UInt64) -> UInt64? {
    guard number > first else { return nil }
    let near = number - first > Self.probes ? number - Self.probes : first
    for candidate in (near...number - 1).reversed() where find(candidate) != 0 {
      return candidate
    }
    guard near > first else { return nil }
    var best: UInt64?
    for index in 0..<capacity where places[index].key != 0 {
      let candidate = UInt64(places[index].key - 1)
      if candidate < near, candidate >= first, candidate > best ?? 0 || best == nil { best = candidate }
    }
    return best
  }

  // MARK: Directory

  private var places: UnsafeMutablePointer<Place> {
    directory.base.assumingMemoryBound(to: Place.self)
  }

  private var sorted: UnsafeMutablePointer<UInt32> {
    (directory.base + capacity * 8).assumingMemoryBound(to: UInt32.self)
  }

  /// Where the search for a key begins. Fibonacci hashing: Knuth, TAOCP vol. 3, 6.4.
  private func home(_ key: UInt32) -> Int {
    Int((UInt64(key) &* 0x9E37_79B9_7F4A_7C15) >> 32) & (capacity - 1)
  }

  /// The chunk of a chunk number; 0 for none.
  private func find(_ number: UInt64) -> UInt32 {
    assert(number < addressablePages >> Self.chunkShift, "page out of range")
    let key = UInt32(truncatingIfNeeded: number) + 1
    var index = home(key)
    while true {
      let place = places[index]
      if place.key == key { return place.chunk }
      if place.key == 0 { return 0 }
      index = (index + 1) & (capacity - 1)
    }
  }

  /// A new, empty chunk for a number that has none; nil without memory.
  private mutating func makeChunk(_ number: UInt64, for purpose: ChunkArena.Purpose) -> UInt32? {
    if (chunkCount + 1) * 4 > capacity * 3, !grow() { return nil }
    guard let chunk = arena.allocate(for: purpose, share) else { return nil }
    if case .fork = purpose { inheritedCount += 1 }
    place(UInt32(number) + 1, chunk)
    chunkCount += 1
    sortedCount = -1
    scans = 0
    return chunk
  }

  private func place(_ key: UInt32, _ chunk: UInt32) {
    var index = home(key)
    while places[index].key != 0 { index = (index + 1) & (capacity - 1) }
    places[index] = Place(key: key, chunk: chunk)
  }

  private mutating func grow() -> Bool {
    guard let new = try? Self.newDirectory(capacity * 2) else { return false }
    let (old, oldCapacity) = (directory, capacity)
    directory = new
    capacity *= 2
    let from = old.base.assumingMemoryBound(to: Place.self)
    for index in 0..<oldCapacity where from[index].key != 0 {
      place(from[index].key, from[index].chunk)
    }
    old.destroy()
    return true
  }

  /// Removes an empty chunk, and shifts the followers of its place back.
  private mutating func dropChunk(_ number: UInt64) {
    let mask = capacity - 1
    let key = UInt32(number) + 1
    var hole = home(key)
    while places[hole].key != key { hole = (hole + 1) & mask }
    giveBack(places[hole].chunk)
    var index = (hole + 1) & mask
    while places[index].key != 0 {
      // It may move if the hole is on its way from home to where it is.
      if (index - home(places[index].key)) & mask >= (index - hole) & mask {
        places[hole] = places[index]
        hole = index
      }
      index = (index + 1) & mask
    }
    places[hole] = Place(key: 0, chunk: 0)
  }

  private mutating func giveBack(_ chunk: UInt32) {
    arena.free(chunk, wasInherited: inheritedCount > 0, share)
    if inheritedCount > 0 { inheritedCount -= 1 }
    chunkCount -= 1
  }
}
