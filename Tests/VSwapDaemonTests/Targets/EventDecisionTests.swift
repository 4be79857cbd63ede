import CUserfault
import CVSwapWire
import Glibc
import Testing

@testable import VSwapDaemon

/// What the books do with what the kernel tells, where a wrong decision would be a page of zeros, or one that comes back.
@Suite("Decisions about events", .enabled(if: ServedMemory.isPossible, "no userfaultfd for the tests"))
struct EventDecisionTests {
  /// The child has the unmap from its parent: something was moved there since.
  @Test("an unmap that a child inherits lets go of what is not registered, and of nothing else")
  func inheritedUnmapAsksForEachPage() throws {
    let memory = try ServedMemory(pages: 16)
    try memory.register(0..<8)
    for index in [0, 3, 7, 8, 12] { try memory.putOut(index) }
    let isDone = memory.state.forgetUnregisteredPages(memory.first, memory.first + 16, memory.layer)
    #expect(isDone)
    #expect(memory.out == [0, 3, 7])
    #expect(memory.account.swapped == 3 && memory.layer.table.inUse == 3)
  }

  @Test("an unmap that waits goes on waiting while the list of mappings cannot be read")
  func unmapWaitsForTheList() throws {
    let memory = try ServedMemory(pages: 16, hasAgent: true)
    try memory.register(0..<8)
    for index in [1, 9] { try memory.putOut(index) }
    var isDone = memory.state.forgetUnmapped(memory.first, memory.first + 16, mappings: nil, memory.layer)
    #expect(!isDone && memory.out == [1, 9])
    let region = MappedRegion(start: memory.first, end: memory.first + 8)
    isDone = memory.state.forgetUnmapped(memory.first, memory.first + 16, mappings: [region], memory.layer)
    #expect(isDone && memory.out == [1])
  }

  /// A page in the kernel's swap, or one that it is moving, comes back as it was before it is discarded.
  @Test("what the kernel has swapped out is neither discarded already nor evicted")
  func swappedOutIsNotMissing() throws {
    let memory = try ServedMemory(pages: 8)
    let first = memory.first
    memory.state.discarded.insert(from: first, below: first + 8)
    var found = [
      region(first, 2, vs_page_is_present()), region(first + 2, 1, vs_page_is_swapped()),
      region(first + 6, 1, vs_page_is_present()),
    ]
    let runs = UnsafeMutablePointer<vswap_run>.allocate(capacity: 8)
    defer { runs.deallocate() }
    var builder = RunBuilder(runs: runs, limit: 8)
    found.withUnsafeMutableBufferPointer { choose(from: $0, of: memory, below: first + 8, &builder) }
    #expect(builder.pages == 0, "all that is present may be what is being discarded")
    #expect((0..<8).filter { memory.state.discarded.contains(first + $0) } == [0, 1, 2, 6])
    memory.state.discarded.removeAll()
    found.withUnsafeMutableBufferPointer { choose(from: $0, of: memory, below: first + 8, &builder) }
    #expect(builder.pages == 3 && builder.count == 2 && runs[1].address == (first + 6) * UInt64(pageSize))
  }

  /// As a scan does that found these.
  private func choose(
    from found: UnsafeMutableBufferPointer<vs_page_region>, of memory: ServedMemory, below end: UInt64,
    _ builder: inout RunBuilder
  ) {
    memory.state.note(found, from: memory.first, below: end)
    for region in found where region.isPresent {
      memory.state.choose(from: region.start / UInt64(pageSize), below: region.end / UInt64(pageSize), &builder)
    }
  }

  private func region(_ page: UInt64, _ pages: UInt64, _ categories: UInt64) -> vs_page_region {
    vs_page_region(start: page * UInt64(pageSize), end: (page + pages) * UInt64(pageSize), categories: categories)
  }

  @Test("the kernel is asked for pages that are present, and only while something is discarded for swapped ones")
  func scanListsWhatIsPresent() throws {
    let memory = try ServedMemory(pages: 8)
    let pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    defer { close(pagemap) }
    let address = memory.first * UInt64(pageSize)
    UnsafeMutablePointer<UInt8>(bitPattern: UInt(address) + 3 * UInt(pageSize))!.pointee = 1
    for swapped in [Int32(0), 1] {
      var regions = [vs_page_region](repeating: vs_page_region(), count: 4)
      var walked: UInt64 = 0
      let count = vs_pagemap_scan(pagemap, address, address + UInt64(8 * pageSize), &regions, 4, 8, swapped, &walked)
      #expect(
        count == 1 && regions[0].start == address + UInt64(3 * pageSize) && regions[0].end == address + UInt64(4 * pageSize))
      #expect(regions[0].categories == vs_page_is_present() && walked == address + UInt64(8 * pageSize))
    }
  }

  @Test("memory that grows by mremap is left to the kernel only where nothing of it is out")
  func growthWithSlotsIsKept() throws {
    let memory = try ServedMemory(pages: 16)
    try memory.putOut(5)
    let address = { (index: Int) in (memory.first + UInt64(index)) * UInt64(pageSize) }
    func pages(_ start: UInt64, _ length: Int, at index: Int) -> Range<UInt64>? {
      memory.state.growingPages(vs_growth(start: start, length: UInt64(length * pageSize)), at: address(index))
    }
    #expect(pages(0, 0, at: 1) == nil, "the thread is in no mremap")
    #expect(pages(0, 4, at: 1) == memory.first + 1..<memory.first + 5)
    #expect(pages(0, 5, at: 1) == nil && pages(0, 1, at: 5) == nil, "page 5 is out")
    #expect(pages(address(4), 4, at: 4) == memory.first + 4..<memory.first + 8, "what was at a fixed place has been replaced")
    #expect(pages(address(4), 4, at: 6) == memory.first + 6..<memory.first + 8)
    #expect(pages(address(4), 4, at: 3) == nil && pages(address(4), 4, at: 8) == nil, "another fault")
    #expect(pages(.max, 4, at: 6) == nil && pages(0, Int.max / pageSize, at: 15) != nil, "whatever the numbers are")
  }

  /// With page tables of five levels programs have addresses above 48 bits, if they ask for them.
  @Test("pages above 48 bits have no entries, and leave those below alone", arguments: [36, 41, 44] as [UInt64])
  func highAddressesAreLeftAlone(shift: UInt64) throws {
    let memory = try ServedMemory(pages: 8)
    let layer = memory.layer
    try memory.putOut(2)
    let high: UInt64 = 1 << shift
    // In 32 bits the number of its chunk is that of page 2.
    let alias = high + memory.first + 2
    #expect(memory.state.table.entry(alias) == 0)
    let wasSet = memory.state.table.set(alias, PageTableEntry.resident(chances: 1))
    let wasCleared = memory.state.table.set(alias, 0)
    #expect(!wasSet && wasCleared)
    for (low, pages) in [(high, 1 << 20), (alias, 1), (high - 512, 2048), (high, UInt64.max - high)] as [(UInt64, UInt64)] {
      memory.state.applyRemove(low &* UInt64(pageSize), (low &+ pages) &* UInt64(pageSize), layer: layer)
      memory.state.applyUnmap(low &* UInt64(pageSize), (low &+ pages) &* UInt64(pageSize), layer: layer)
    }
    #expect(memory.out == [2])
    memory.state.applyRemap(high * UInt64(pageSize), (high + 4096) * UInt64(pageSize), 1 << 20, layer: layer)
    #expect(memory.out == [2] && !memory.state.isBroken)
    // What comes from there takes the place of what was here.
    let hasMoved = memory.state.table.moveRange(from: high, to: memory.first, count: 8, layer: layer, target: 1)
    #expect(hasMoved && memory.out == [] && layer.table.inUse == 0)
  }

  @Test("swapped pages that move above 48 bits are lost, never zeros")
  func movesAboveBreakTheAddressSpace() throws {
    let memory = try ServedMemory(pages: 8)
    try memory.putOut(2)
    memory.state.applyRemap(
      memory.first * UInt64(pageSize), (1 << 41) * UInt64(pageSize), UInt64(8 * pageSize), layer: memory.layer)
    #expect(memory.state.isBroken)
  }

  /// A page that has left cannot go back, and events may empty the chunk of the page table that it was to be noted in.
  @Test("pages leave only if the page table has room for them until the command has ended")
  func evictionsHoldTheirChunks() throws {
    let memory = try ServedMemory(pages: 1536, maximumChunks: 1)
    // Pages of three chunks: there is one.
    let start = Int((memory.first | 511) + 1 - memory.first)
    let runs = UnsafeMutablePointer<vswap_run>.allocate(capacity: 3)
    defer { runs.deallocate() }
    for (index, (page, pages)) in [(start, 2), (start - 1, 1), (start + 2, 4)].enumerated() {
      runs[index] = vswap_run(address: (memory.first + UInt64(page)) * UInt64(pageSize), pages: UInt32(pages), reserved: 0)
    }
    let held = memory.state.hold(runs, 3)
    #expect(held == (2, 6), "the run in the other chunk stays")
    #expect(runs[1].address == (memory.first + UInt64(start + 2)) * UInt64(pageSize))
    try memory.putOut(start)
    let address = (memory.first + UInt64(start)) * UInt64(pageSize)
    memory.state.applyRemove(address, address + UInt64(pageSize), layer: memory.layer)
    memory.state.applyUnmap(address, address + UInt64(pageSize), layer: memory.layer)
    var other = try PageTable.create(arena: memory.arena)
    defer { other.destroy(layer: memory.layer) }
    let isTaken = !other.hold(from: 0, below: 1)
    #expect(isTaken, "it is empty, and kept all the same")
    try memory.putOut(start + 1)
    memory.state.letGo(runs, 2)
    let isInUse = !other.hold(from: 0, below: 1)
    #expect(isInUse && memory.out == [start + 1])
    let slot = memory.state.table.entry(memory.first + UInt64(start + 1))
    memory.layer.release(slot)
    let isFree = memory.state.table.set(memory.first + UInt64(start + 1), 0) && other.hold(from: 0, below: 1)
    #expect(isFree)
  }
}
