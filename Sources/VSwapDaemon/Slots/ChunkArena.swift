import Synchronization

/// Chunks of 512 page table entries (2 KiB, 2 MiB of address space), shared by all page tables.
///
/// A trivial handle; any thread may allocate and free (one lock, never on the path of a fault, which finds
/// its chunk there). A chunk's entries and count belong to the table that has it, under its target's lock.
/// Chunks are numbered 1 ... maximumChunks; a free chunk is all zero. When both chunks of a page are free,
/// and more than a few are, the page's RAM goes back to the system.
struct ChunkArena: @unchecked Sendable {
  /// Entries in a chunk.
  static let entriesPerChunk = 512
  /// Bytes in a chunk.
  static let chunkBytes = entriesPerChunk * 4
  /// RAM a chunk in use takes, its record included, in bytes.
  static let bytesPerChunk = chunkBytes + 4

  /// Free chunks that keep their RAM in any case.
  private static let retainedChunks = 256
  /// In a record: the chunk is free, the rest is the next free one. Otherwise it counts non-zero entries.
  private static let freeMark: UInt32 = 1 << 31

  /// First page of the record mapping; under `lock`.
  private struct Header {
    var freeHead: UInt32
    var freeCount: Int
    /// Chunks 1 ... fresh have been in use at least once.
    var fresh: Int
  }

  /// Chunks there can be.
  let maximumChunks: Int
  private let chunks: Mapping
  private let records: Mapping
  private let lock: Lock

  /// An arena of `maximumChunks` (1 ..< 2^31) chunks, which take RAM from their first use on.
  static func create(maximumChunks: Int) throws(KernelError) -> ChunkArena {
    precondition(maximumChunks > 0 && maximumChunks < 1 << 31)
    let chunks = try Mapping.create(
      name: "vswapd-page-tables", length: (maximumChunks + 1) * chunkBytes)
    do {
      let records = try Mapping.create(
        name: "vswapd-page-table-records", length: pageSize + (maximumChunks + 1) * 4)
      return ChunkArena(maximumChunks: maximumChunks, chunks: chunks, records: records, lock: .create())
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
  func used(_ chunk: UInt32) -> Int { Int(record(chunk).pointee.load(ordering: .relaxed)) }

  /// Sets the number of non-zero entries of a chunk in use.
  func setUsed(_ chunk: UInt32, _ count: Int) {
    record(chunk).pointee.store(UInt32(count), ordering: .relaxed)
  }

  /// RAM held by all chunks and their records, in bytes, free ones included. Two system calls.
  var metadataBytes: Int { chunks.allocatedBytes() + records.allocatedBytes() }

  /// A chunk of zeros; nil when all are in use.
  func allocate() -> UInt32? {
    lock.lock()
    defer { lock.unlock() }
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
    setUsed(chunk, 0)
    return chunk
  }

  /// Takes a chunk back, all entries of which are zero.
  func free(_ chunk: UInt32) {
    assert(used(chunk) == 0)
    lock.lock()
    defer { lock.unlock() }
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
