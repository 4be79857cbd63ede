import Synchronization

/// Chunks of 512 page table entries (2 KiB, 2 MiB of address space), shared by all page tables.
///
/// A trivial handle; any thread may allocate and free (one lock, never on the path of a fault, which finds
/// its chunk there). A chunk's entries and count belong to the table that has it, under its target's lock.
/// Chunks are numbered 1 ... maximumChunks; a free chunk is all zero. When both chunks of a page are free,
/// and more than a few are, the page's RAM goes back to the system.
///
/// What a page that leaves needs is there before it leaves: an eviction holds the chunks of its pages from before it begins, so they
/// stay even while they are empty, and does not begin without. A fork cannot be put off, so what forks take evictions cannot
/// use up.
struct ChunkArena: @unchecked Sendable {
  /// Entries in a chunk.
  static let entriesPerChunk = 512
  /// Bytes in a chunk.
  static let chunkBytes = entriesPerChunk * 4
  /// RAM a chunk in use takes, its record included, in bytes.
  static let bytesPerChunk = chunkBytes + 4

  /// What a chunk is wanted for.
  enum Purpose {
    /// May be refused: the pages stay where they are. To one group no more than there are left for others.
    case eviction
    /// For the child's table.
    case fork
    /// Pages that mremap has moved.
    case move
  }

  /// Free chunks that keep their RAM in any case.
  private static let retainedChunks = 256
  /// In a record: the chunk is free, the rest is the next free one. Otherwise the lower half counts non-zero entries, and what is above
  /// it commands that hold the chunk.
  private static let freeMark: UInt32 = 1 << 31
  private static let oneHold: UInt32 = 1 << 16

  /// First page of the record mapping; under `lock`.
  private struct Header {
    var freeHead: UInt32
    var freeCount: Int
    /// Chunks 1 ... fresh have been in use at least once.
    var fresh: Int
    /// Chunks in use that were made for forks.
    var inherited: Int
  }

  /// Chunks there can be.
  let maximumChunks: Int
  /// Of those, the ones that evictions leave to forks and moves.
  let keptForForks: Int
  /// For children.
  let descriptors: DescriptorReserve
  private let chunks: Mapping
  private let records: Mapping
  private let lock: Lock

  /// An arena of `maximumChunks` (1 ..< 2^31) chunks, which take RAM from their first use on.
  static func create(
    maximumChunks: Int, keptForForks: Int = 0, descriptors: DescriptorReserve = .create(atMost: 0)
  ) throws(KernelError) -> ChunkArena {
    precondition(maximumChunks > 0 && maximumChunks < 1 << 31 && keptForForks < maximumChunks)
    let chunks = try Mapping.create(
      name: "vswapd-page-tables", length: (maximumChunks + 1) * chunkBytes)
    do {
      let records = try Mapping.create(
        name: "vswapd-page-table-records", length: pageSize + (maximumChunks + 1) * 4)
      return ChunkArena(
        maximumChunks: maximumChunks, keptForForks: keptForForks, descriptors: descriptors, chunks: chunks, records: records,
        lock: .create())
    } catch {
      chunks.destroy()
      throw error
    }
  }

  /// Gives the memory back, after all page tables have been destroyed.
  func destroy() {
    chunks.destroy()
    records.destroy()
    lock.destroy()
    descriptors.destroy()
  }

  private var header: UnsafeMutablePointer<Header> {
    records.base.assumingMemoryBound(to: Header.self)
  }

  /// Neighbours' records are read by whoever frees a chunk: atomic, but relaxed, as the free mark changes
  /// under the lock only.
  private func record(_ chunk: UInt32) -> UnsafeMutablePointer<Atomic<UInt32>> {
    assert(Int(chunk) <= maximumChunks, "chunk out of range")
    return (records.base + pageSize).assumingMemoryBound(to: Atomic<UInt32>.self) + Int(chunk)
  }

  /// The 512 entries of a chunk.
  func entries(_ chunk: UInt32) -> UnsafeMutablePointer<UInt32> {
    assert(chunk > 0 && Int(chunk) <= maximumChunks, "chunk out of range")
    return (chunks.base + Int(chunk) * Self.chunkBytes).assumingMemoryBound(to: UInt32.self)
  }

  /// Non-zero entries of a chunk in use.
  func used(_ chunk: UInt32) -> Int { Int(record(chunk).pointee.load(ordering: .relaxed) & (Self.oneHold - 1)) }

  /// Whether nobody needs a chunk in use any more: it has no entries, and no command holds it.
  func isIdle(_ chunk: UInt32) -> Bool { record(chunk).pointee.load(ordering: .relaxed) == 0 }

  /// Counts an entry of a chunk in use that became non-zero, or zero.
  func entryChanged(_ chunk: UInt32, isNonZero: Bool) { change(chunk, by: isNonZero ? 1 : 0 &- 1) }

  /// The chunk stays, empty or not, until it was let go of as often.
  func hold(_ chunk: UInt32) { change(chunk, by: Self.oneHold) }
  func letGo(_ chunk: UInt32) { change(chunk, by: 0 &- Self.oneHold) }

  private func change(_ chunk: UInt32, by change: UInt32) {
    let record = record(chunk)
    record.pointee.store(record.pointee.load(ordering: .relaxed) &+ change, ordering: .relaxed)
  }

  /// RAM held by all chunks and their records, in bytes, free ones included. Two system calls.
  var metadataBytes: Int { chunks.allocatedBytes() + records.allocatedBytes() }

  /// A chunk of zeros; nil when there is none for that purpose. `share`: what the group has, this one included afterwards.
  func allocate(for purpose: Purpose, _ share: ChunkShare?) -> UInt32? {
    lock.lock()
    defer { lock.unlock() }
    if case .eviction = purpose {
      let inUse = header.pointee.fresh - header.pointee.freeCount - header.pointee.inherited
      let left = maximumChunks - keptForForks - inUse
      guard left > 0, share.map({ $0.chunks < left }) ?? true else { return nil }
    }
    let chunk: UInt32
    if header.pointee.freeHead != 0 {
      chunk = header.pointee.freeHead
      header.pointee.freeHead = record(chunk).pointee.load(ordering: .relaxed) & ~Self.freeMark
      header.pointee.freeCount -= 1
    } else {
      guard header.pointee.fresh < maximumChunks else { return nil }
      header.pointee.fresh += 1
      chunk = UInt32(header.pointee.fresh)
    }
    record(chunk).pointee.store(0, ordering: .relaxed)
    if case .fork = purpose { header.pointee.inherited += 1 }
    share?.add(1)
    return chunk
  }

  /// Takes a chunk back, all entries of which are zero. `wasInherited`: it counts as made for a fork.
  func free(_ chunk: UInt32, wasInherited: Bool, _ share: ChunkShare?) {
    assert(used(chunk) == 0)
    lock.lock()
    defer { lock.unlock() }
    share?.add(-1)
    if wasInherited { header.pointee.inherited -= 1 }
    record(chunk).pointee.store(Self.freeMark | header.pointee.freeHead, ordering: .relaxed)
    header.pointee.freeHead = chunk
    header.pointee.freeCount += 1
    let neighbour = chunk ^ 1
    guard header.pointee.freeCount > Self.retainedChunks, Int(neighbour) <= header.pointee.fresh,
      record(neighbour).pointee.load(ordering: .relaxed) & Self.freeMark != 0
    else { return }
    // Under the lock, since the neighbour could be allocated otherwise. It happens once per 1024 entries.
    // A failure costs nothing but the RAM: a free chunk is zero already.
    try? chunks.discard(offset: Int(min(chunk, neighbour)) * Self.chunkBytes, length: pageSize)
  }
}
