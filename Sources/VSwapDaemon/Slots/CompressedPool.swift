import Synchronization

/// Compressed pages in RAM: an arena of 64 KiB blocks, each holding objects of one size class.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. Class c (1 ... 127) has a
/// stride of 32 c bytes: the object at the start, the number of its slot in the last 4 (the back reference
/// that makes objects movable). Class 128 is for raw pages, 4096 bytes without room to spare; their back
/// references follow the block records. Offsets are in units of 16 bytes; block 0 is never used, so neither
/// is offset 0.
///
/// Partial blocks are kept by fullness, like zsmalloc's fullness groups: new objects go into the fullest,
/// compaction empties the sparsest. Both are O(1).
///
/// Locks: one per class, over its lists and the records and back references of its blocks; one for the
/// lists of free blocks. A class lock may be held while taking the block lock, never the other way round, and
/// no two class locks at once. An object's bytes belong to whoever allocated it until a slot's word names it.
struct CompressedPool: @unchecked Sendable {
  /// A number of a 64 KiB block, 1 and up.
  typealias Block = UInt32

  /// Bytes in a block.
  static let blockSize = 65536
  /// Bytes per unit of an offset.
  static let unit = 16
  /// Classes are 1 ... classCount.
  static let classCount = 128
  /// Class of raw pages.
  static let rawClass = 128
  /// Longest object that is not raw, in bytes.
  static let longestCompressed = 127 * 32 - 4
  /// Empty blocks that keep their RAM after `trim`, for the next one in need.
  static let retainedBlocks = 8
  /// Empty blocks that keep their RAM until `trim` is called: discarding one takes a system call of some
  /// 10 us, which the fault that frees a block's last object should not pay.
  static let untrimmedBlocks = 64

  private static let unitsPerBlock = UInt32(blockSize / unit)
  private static let rawObjectsPerBlock = blockSize / pageSize
  private static let groups = 8
  /// Not on a list: no room.
  private static let groupFull: UInt8 = 8
  /// Not on a list: being emptied by a compaction.
  private static let groupIsolated: UInt8 = 9
  /// In a back reference: the object is free, the rest is the next free one's index plus one.
  private static let freeMark: UInt32 = 1 << 31

  /// 16 bytes per block. Under the lock of its class, or the block lock while it is on a free list.
  private struct Record {
    var sizeClass: UInt8
    /// Fullness group 0 ... 7, `groupFull` or `groupIsolated`.
    var group: UInt8
    var used: UInt16
    /// Objects 0 ..< carved have been allocated at least once since the block was opened.
    var carved: UInt16
    /// Index of the first free object plus one; 0 for none.
    var freeHead: UInt16
    /// Neighbours in the group's list; `next` also links free blocks. 0: none.
    var next: Block
    var previous: Block
  }

  /// Under the lock of the class.
  private struct SizeClass {
    var blocks: Int
    var used: Int
  }

  /// At the start of the metadata mapping.
  private struct Header: ~Copyable {
    let limitBytes: Atomic<Int>
    let blocksInUse: Atomic<Int>
    let objects: Atomic<Int>
    let compressedBytes: Atomic<Int>
  }

  /// In the same page, a cache line further; under the block lock.
  private struct FreeBlocks {
    /// Empty blocks that still have RAM, and ones that have none.
    var retainedHead: Block
    var discardedHead: Block
    var retained: Int
    /// Blocks 1 ... fresh have been in use at least once.
    var fresh: Int
  }

  /// Blocks the arena has room for.
  let maximumBlocks: Int
  private let arena: Mapping
  private let metadata: Mapping
  /// 0: the block lock; 1 ... 128: the classes'.
  private let locks: UnsafeMutablePointer<Lock>

  // MARK: Life

  /// A pool that never takes more than `limitBytes` of RAM, in an address range of `reserveBytes` (up to
  /// 64 GiB; rounded down to blocks, at least one).
  static func create(reserveBytes: Int, limitBytes: Int) throws(KernelError) -> CompressedPool {
    precondition(MemoryLayout<Record>.stride == 16 && MemoryLayout<SizeClass>.stride == 16)
    let blocks = max(1, min(reserveBytes / blockSize, (1 << 32) / Int(unitsPerBlock) - 1))
    let arena = try Mapping.create(name: "vswapd-pool", length: (blocks + 1) * blockSize)
    do {
      let metadata = try Mapping.create(name: "vswapd-pool-records", length: layout(blocks).length)
      return CompressedPool(blocks: blocks, arena: arena, metadata: metadata, limitBytes: limitBytes)
    } catch {
      arena.destroy()
      throw error
    }
  }

  private init(blocks: Int, arena: Mapping, metadata: Mapping, limitBytes: Int) {
    maximumBlocks = blocks
    self.arena = arena
    self.metadata = metadata
    locks = .allocate(capacity: Self.classCount + 1)
    for index in 0...Self.classCount {
      (locks + index).initialize(to: .create())
    }
    setLimit(bytes: limitBytes)
  }

  /// Gives the memory back. Nobody may use a copy of the handle any more.
  func destroy() {
    for index in 0...Self.classCount {
      locks[index].destroy()
    }
    locks.deallocate()
    arena.destroy()
    metadata.destroy()
  }

  // MARK: Layout

  /// Offsets in the metadata mapping, in bytes.
  private static func layout(_ blocks: Int) -> (records: Int, rawReferences: Int, length: Int) {
    // One page of header, two of classes and list heads.
    let records = 3 * pageSize
    let rawReferences = records + (blocks + 1) * MemoryLayout<Record>.stride
    return (records, rawReferences, rawReferences + (blocks + 1) * rawObjectsPerBlock * 4)
  }

  private var header: UnsafeMutablePointer<Header> {
    metadata.base.assumingMemoryBound(to: Header.self)
  }

  private var freeBlocks: UnsafeMutablePointer<FreeBlocks> {
    (metadata.base + 64).assumingMemoryBound(to: FreeBlocks.self)
  }

  private func sizeClass(_ index: Int) -> UnsafeMutablePointer<SizeClass> {
    assert((1...Self.classCount).contains(index))
    return (metadata.base + pageSize).assumingMemoryBound(to: SizeClass.self) + index
  }

  private func groupHead(_ sizeClass: Int, _ group: Int) -> UnsafeMutablePointer<Block> {
    let heads = metadata.base + pageSize + (Self.classCount + 1) * MemoryLayout<SizeClass>.stride
    return heads.assumingMemoryBound(to: Block.self) + (sizeClass * Self.groups + group)
  }

  private func record(_ block: Block) -> UnsafeMutablePointer<Record> {
    assert(block > 0 && Int(block) <= maximumBlocks, "block out of range")
    let records = metadata.base + 3 * pageSize
    return records.assumingMemoryBound(to: Record.self) + Int(block)
  }

  /// The back reference of an object: its slot, or `freeMark` and the next free object of the block.
  private func reference(
    _ block: Block, _ index: Int, _ sizeClass: Int
  ) -> UnsafeMutablePointer<Atomic<UInt32>> {
    if sizeClass == Self.rawClass {
      let table = metadata.base + Self.layout(maximumBlocks).rawReferences
      let entries = table.assumingMemoryBound(to: Atomic<UInt32>.self)
      return entries + (Int(block) * Self.rawObjectsPerBlock + index)
    }
    let stride = sizeClass * 32
    let end = arena.base + Int(block) * Self.blockSize + (index + 1) * stride
    return (end - 4).assumingMemoryBound(to: Atomic<UInt32>.self)
  }

  private static func capacity(_ sizeClass: Int) -> Int {
    blockSize / (sizeClass * 32)
  }

  /// Class for an object of `length` bytes, 1 ... 4096.
  static func sizeClass(length: Int) -> Int {
    assert((1...pageSize).contains(length))
    return length > longestCompressed ? rawClass : (length + 4 + 31) / 32
  }

  private static func offset(_ block: Block, _ index: Int, _ sizeClass: Int) -> UInt32 {
    block * unitsPerBlock + UInt32(index * sizeClass * 32 / unit)
  }

  private static func block(_ offset: UInt32) -> Block { offset / unitsPerBlock }

  /// First byte of an object; 16-byte aligned.
  func bytes(_ offset: UInt32) -> UnsafeMutableRawPointer {
    arena.base + Int(offset) * Self.unit
  }

  // MARK: Figures

  /// RAM the pool may take, in bytes. Lowering it below what is in use frees nothing, but stops growth.
  func setLimit(bytes: Int) {
    header.pointee.limitBytes.store(bytes, ordering: .relaxed)
  }

  /// The limit, in bytes.
  var limitBytes: Int { header.pointee.limitBytes.load(ordering: .relaxed) }
  /// Within a sixteenth of the limit, a block at least.
  var isNearLimit: Bool { arenaBytes > limitBytes - max(limitBytes / 16, Self.blockSize) }
  /// Bytes of blocks in use: what the limit counts.
  var arenaBytes: Int { header.pointee.blocksInUse.load(ordering: .relaxed) * Self.blockSize }
  /// Objects allocated.
  var objects: Int { header.pointee.objects.load(ordering: .relaxed) }
  /// Their bytes.
  var compressedBytes: Int { header.pointee.compressedBytes.load(ordering: .relaxed) }
  /// RAM held by block records, class lists and back references of raw pages, in bytes.
  var metadataBytes: Int { metadata.allocatedBytes() }
  /// RAM held by the arena, empty blocks that keep theirs included, in bytes. One system call.
  func residentBytes() -> Int { arena.allocatedBytes() }

  // MARK: Objects

  /// Room for `length` (1 ... 4096) bytes of the page of `slot`; nil when the limit forbids another block.
  func allocate(length: Int, slot: SlotNumber) -> UInt32? {
    let sizeClass = Self.sizeClass(length: length)
    locks[sizeClass].lock()
    defer { locks[sizeClass].unlock() }
    guard let block = fullestPartial(sizeClass) ?? open(sizeClass) else { return nil }
    count(objects: 1, bytes: length)
    return take(block, sizeClass, slot)
  }

  /// Gives an object of `length` bytes back, which no slot's word names any more.
  func free(_ offset: UInt32, length: Int) {
    let block = Self.block(offset)
    let record = record(block)
    let sizeClass = Self.sizeClass(length: length)
    let index = Int(offset % Self.unitsPerBlock) * Self.unit / (sizeClass * 32)
    count(objects: -1, bytes: -length)

    locks[sizeClass].lock()
    assert(Int(record.pointee.sizeClass) == sizeClass)
    let reference = reference(block, index, sizeClass)
    assert(reference.pointee.load(ordering: .relaxed) & Self.freeMark == 0, "freed an object twice")
    reference.pointee.store(Self.freeMark | UInt32(record.pointee.freeHead), ordering: .relaxed)
    record.pointee.freeHead = UInt16(index + 1)
    record.pointee.used -= 1
    self.sizeClass(sizeClass).pointee.used -= 1
    let isEmpty = record.pointee.used == 0 && record.pointee.group != Self.groupIsolated
    if isEmpty { close(block, sizeClass) } else { regroup(block, sizeClass) }
    locks[sizeClass].unlock()
    if isEmpty { giveBack(block) }
  }

  private func count(objects: Int, bytes: Int) {
    header.pointee.objects.add(objects, ordering: .relaxed)
    header.pointee.compressedBytes.add(bytes, ordering: .relaxed)
  }

  /// Allocates in a block that has room. Under the class lock.
  private func take(_ block: Block, _ sizeClass: Int, _ slot: SlotNumber) -> UInt32 {
    let record = record(block)
    let index: Int
    if record.pointee.freeHead != 0 {
      index = Int(record.pointee.freeHead) - 1
      let next = reference(block, index, sizeClass).pointee.load(ordering: .relaxed)
      record.pointee.freeHead = UInt16(next & ~Self.freeMark)
    } else {
      index = Int(record.pointee.carved)
      record.pointee.carved += 1
    }
    reference(block, index, sizeClass).pointee.store(slot, ordering: .relaxed)
    record.pointee.used += 1
    self.sizeClass(sizeClass).pointee.used += 1
    regroup(block, sizeClass)
    return Self.offset(block, index, sizeClass)
  }

  // MARK: Lists of a class (under its lock)

  private func fullestPartial(_ sizeClass: Int) -> Block? {
    for group in stride(from: Self.groups - 1, through: 0, by: -1) {
      let block = groupHead(sizeClass, group).pointee
      if block != 0 { return block }
    }
    return nil
  }

  private func sparsestPartial(_ sizeClass: Int) -> Block? {
    for group in 0..<Self.groups {
      let block = groupHead(sizeClass, group).pointee
      if block != 0 { return block }
    }
    return nil
  }

  /// Moves a block to the list that fits its fullness, unless a compaction has taken it off.
  private func regroup(_ block: Block, _ sizeClass: Int) {
    let record = record(block)
    guard record.pointee.group != Self.groupIsolated else { return }
    let capacity = Self.capacity(sizeClass)
    let used = Int(record.pointee.used)
    let group = used == capacity ? Self.groupFull : UInt8(used * Self.groups / capacity)
    guard group != record.pointee.group else { return }
    unlink(block, sizeClass)
    link(block, sizeClass, group)
  }

  private func link(_ block: Block, _ sizeClass: Int, _ group: UInt8) {
    let record = record(block)
    record.pointee.group = group
    guard group < Self.groupFull else { return }
    let head = groupHead(sizeClass, Int(group))
    record.pointee.previous = 0
    record.pointee.next = head.pointee
    if head.pointee != 0 { self.record(head.pointee).pointee.previous = block }
    head.pointee = block
  }

  private func unlink(_ block: Block, _ sizeClass: Int) {
    let record = record(block)
    guard record.pointee.group < Self.groupFull else { return }
    let (previous, next) = (record.pointee.previous, record.pointee.next)
    if previous != 0 {
      self.record(previous).pointee.next = next
    } else {
      groupHead(sizeClass, Int(record.pointee.group)).pointee = next
    }
    if next != 0 { self.record(next).pointee.previous = previous }
  }

  /// A new block for the class, linked, if the limit and the arena have room.
  private func open(_ sizeClass: Int) -> Block? {
    guard let block = takeBlock() else { return nil }
    arena.populate(offset: Int(block) * Self.blockSize, length: Self.blockSize)
    record(block).initialize(
      to: Record(
        sizeClass: UInt8(sizeClass), group: Self.groupFull, used: 0, carved: 0, freeHead: 0, next: 0,
        previous: 0))
    self.sizeClass(sizeClass).pointee.blocks += 1
    link(block, sizeClass, 0)
    return block
  }

  /// Takes an empty block out of the class; `giveBack` follows, without the lock.
  private func close(_ block: Block, _ sizeClass: Int) {
    unlink(block, sizeClass)
    self.sizeClass(sizeClass).pointee.blocks -= 1
  }

  // MARK: Blocks

  private func takeBlock() -> Block? {
    locks[0].lock()
    defer { locks[0].unlock() }
    let inUse = header.pointee.blocksInUse.load(ordering: .relaxed)
    guard (inUse + 1) * Self.blockSize <= limitBytes else { return nil }
    let block: Block
    if freeBlocks.pointee.retainedHead != 0 {
      block = freeBlocks.pointee.retainedHead
      freeBlocks.pointee.retainedHead = record(block).pointee.next
      freeBlocks.pointee.retained -= 1
    } else if freeBlocks.pointee.discardedHead != 0 {
      block = freeBlocks.pointee.discardedHead
      freeBlocks.pointee.discardedHead = record(block).pointee.next
    } else {
      guard freeBlocks.pointee.fresh < maximumBlocks else { return nil }
      freeBlocks.pointee.fresh += 1
      block = Block(freeBlocks.pointee.fresh)
    }
    header.pointee.blocksInUse.store(inUse + 1, ordering: .relaxed)
    return block
  }

  /// Puts an empty block, which is on no list, on one of the free lists. Its RAM is kept as long as that,
  /// with what is in use, stays within the limit.
  ///
  /// Readers that are late may still look at it: they see zeros, and then that their slot has moved on.
  private func giveBack(_ block: Block) {
    locks[0].lock()
    let retained = freeBlocks.pointee.retained
    let resident = header.pointee.blocksInUse.load(ordering: .relaxed) + retained
    var keepsMemory = retained < Self.untrimmedBlocks && resident * Self.blockSize <= limitBytes
    if !keepsMemory {
      // Not on any list, hence ours: the system call need not hold the lock.
      locks[0].unlock()
      keepsMemory = !discard(block)
      locks[0].lock()
    }
    push(block, hasMemory: keepsMemory)
    header.pointee.blocksInUse.subtract(1, ordering: .relaxed)
    locks[0].unlock()
  }

  /// Puts a block on the free list it belongs to. Under the block lock.
  private func push(_ block: Block, hasMemory: Bool) {
    if hasMemory {
      record(block).pointee.next = freeBlocks.pointee.retainedHead
      freeBlocks.pointee.retainedHead = block
      freeBlocks.pointee.retained += 1
    } else {
      record(block).pointee.next = freeBlocks.pointee.discardedHead
      freeBlocks.pointee.discardedHead = block
    }
  }

  /// Gives the RAM of a block back that is on no list. false: the kernel would not, and the RAM stays; a
  /// block with RAM is as good as one without.
  private func discard(_ block: Block) -> Bool {
    do {
      try arena.discard(offset: Int(block) * Self.blockSize, length: Self.blockSize)
      return true
    } catch {
      return false
    }
  }

  /// Gives the RAM of all but a few empty blocks back. For workers: one system call per block.
  func trim() {
    locks[0].lock()
    while freeBlocks.pointee.retained > Self.retainedBlocks {
      let block = freeBlocks.pointee.retainedHead
      freeBlocks.pointee.retainedHead = record(block).pointee.next
      freeBlocks.pointee.retained -= 1
      locks[0].unlock()
      let isDiscarded = discard(block)
      locks[0].lock()
      push(block, hasMemory: !isDiscarded)
      if !isDiscarded { break }
    }
    locks[0].unlock()
  }

  // MARK: Compaction

  /// Takes the sparsest block of a class out of circulation, if the other ones can take its objects in:
  /// nobody allocates in it until `rejoin`. nil when nothing would be gained.
  func isolateSparsest(_ sizeClass: Int) -> (block: Block, carved: Int)? {
    locks[sizeClass].lock()
    defer { locks[sizeClass].unlock() }
    let state = self.sizeClass(sizeClass).pointee
    let capacity = Self.capacity(sizeClass)
    guard state.blocks * capacity - state.used >= capacity else { return nil }
    guard let block = sparsestPartial(sizeClass) else { return nil }
    unlink(block, sizeClass)
    record(block).pointee.group = Self.groupIsolated
    return (block, Int(record(block).pointee.carved))
  }

  /// The slot an object of an isolated block was allocated for, and where it is; nil if it is free.
  ///
  /// It may be freed at any time, and its slot then mean another page: retain the slot, then compare.
  func object(_ index: Int, in block: Block, _ sizeClass: Int) -> (slot: SlotNumber, offset: UInt32)? {
    let slot = reference(block, index, sizeClass).pointee.load(ordering: .relaxed)
    if slot & Self.freeMark != 0 { return nil }
    return (slot, Self.offset(block, index, sizeClass))
  }

  /// Room for an object that moves: like `allocate`, but never in a new block.
  func allocateForMove(length: Int, slot: SlotNumber) -> UInt32? {
    let sizeClass = Self.sizeClass(length: length)
    locks[sizeClass].lock()
    defer { locks[sizeClass].unlock() }
    guard let block = fullestPartial(sizeClass) else { return nil }
    count(objects: 1, bytes: length)
    return take(block, sizeClass, slot)
  }

  /// Ends the isolation of a block: it is given back if it is empty (returns true), else used again.
  func rejoin(_ block: Block, _ sizeClass: Int) -> Bool {
    locks[sizeClass].lock()
    let record = record(block)
    assert(record.pointee.group == Self.groupIsolated)
    record.pointee.group = Self.groupFull
    let isEmpty = record.pointee.used == 0
    if isEmpty {
      close(block, sizeClass)
    } else {
      // Full would do nothing; any other group puts it on its list.
      regroup(block, sizeClass)
    }
    locks[sizeClass].unlock()
    if isEmpty { giveBack(block) }
    return isEmpty
  }
}
