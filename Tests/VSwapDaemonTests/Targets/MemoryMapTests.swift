import CUserfault
import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

/// Reading the list of mappings: of this very process, where it is known what is there.
@Suite struct MemoryMapTests {
  /// Three pages between guards: [none][rw rw rw][none].
  private func withMapping(_ body: (UInt64) throws -> Void) throws {
    let length = 5 * pageSize
    let base = try #require(mmap(nil, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
    defer { munmap(base, length) }
    #expect(mprotect(base + pageSize, 3 * pageSize, PROT_READ | PROT_WRITE) == 0)
    try body(UInt64(UInt(bitPattern: base)) / UInt64(pageSize) + 1)
  }

  private func region(at page: UInt64, withFlags: Bool) throws -> MappedRegion? {
    var map = MemoryMap(processID: getpid())
    return try map.regions(withFlags: withFlags).first { $0.start <= page && page < $0.end }
  }

  @Test(arguments: [false, true]) func anonymousMemoryIsFound(withFlags: Bool) throws {
    try withMapping { page in
      let found = try #require(try region(at: page, withFlags: withFlags))
      #expect(found.anonymous && found.readable && found.writable)
      #expect(found.start == page && found.end == page + 3)
      #expect(!found.excluded)
      let below = try #require(try region(at: page - 1, withFlags: withFlags))
      #expect(below.isNoAccess && below.anonymous)
    }
  }

  @Test func flagsThatForbidEvictionAreSeen() throws {
    try withMapping { page in
      let address = try #require(UnsafeMutableRawPointer(bitPattern: UInt(page) * UInt(pageSize)))
      for (advice, undo) in [(18, 19), (10, 11)] as [(Int32, Int32)] {
        #expect(madvise(address, 3 * pageSize, advice) == 0)
        #expect(try region(at: page, withFlags: true)?.excluded == true, "advice \(advice)")
        #expect(madvise(address, 3 * pageSize, undo) == 0)
        #expect(try region(at: page, withFlags: true)?.excluded == false, "advice \(undo)")
      }
    }
  }

  @Test func sharedAndFileMappingsAreNotAnonymous() throws {
    let shared = try #require(mmap(nil, pageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
    defer { munmap(shared, pageSize) }
    let page = UInt64(UInt(bitPattern: shared)) / UInt64(pageSize)
    #expect(try region(at: page, withFlags: false)?.anonymous == false)
    var map = MemoryMap(processID: getpid())
    let all = try map.regions(withFlags: true)
    #expect(all.contains { $0.growsDown && !$0.anonymous }, "the main thread's stack")
    #expect(Self.isInAddressOrder(all))
  }

  private static func isInAddressOrder(_ list: [MappedRegion]) -> Bool {
    zip(list, list.dropFirst()).allSatisfy { $0.end <= $1.start }
  }

  /// [10, 20) is listed, grows to [10, 25) while the list is read, and is listed again; or a new one reaches from 15 to 25.
  @Test func whatIsListedLaterIsTrue() {
    func listed(_ ranges: [(UInt64, UInt64)]) -> [[UInt64]] {
      var list: [MappedRegion] = []
      for (start, end) in ranges { MemoryMap.append(MappedRegion(start: start, end: end), to: &list) }
      return list.map { [$0.start, $0.end] }
    }
    #expect(listed([(1, 2), (10, 20), (10, 25), (25, 30)]) == [[1, 2], [10, 25], [25, 30]])
    #expect(listed([(1, 2), (10, 20), (15, 25)]) == [[1, 2], [10, 15], [15, 25]])
    #expect(listed([(1, 2), (4, 6), (10, 20), (3, 25)]) == [[1, 2], [3, 25]])
  }

  /// Neighbours become one while the list is read: no page is in it twice, and who stays is found.
  @Test(arguments: [false, true]) func mappingsThatBecomeOneAreListedOnce(withFlags: Bool) throws {
    try withMapping { page in
      let isOver = Atomic<Bool>(false)
      let wrong = Atomic<Int>(0)
      onThreads(3) { thread in
        if thread > 0 { return Self.mapAndUnmap(UInt64(thread), until: isOver) }
        var map = MemoryMap(processID: getpid())
        for _ in 0..<TestScale.rounds(200) {
          let list = (try? map.regions(withFlags: withFlags)) ?? []
          let found = list.count { $0.start == page && $0.end == page + 3 }
          if found != 1 || !Self.isInAddressOrder(list) { wrong.add(1, ordering: .relaxed) }
        }
        isOver.store(true, ordering: .relaxed)
      }
      #expect(wrong.load(ordering: .relaxed) == 0, "VSWAP_SEED=\(SeededRandom.seed)")
    }
  }

  private static func mapAndUnmap(_ thread: UInt64, until isOver: borrowing Atomic<Bool>) {
    var random = SeededRandom(seed: SeededRandom.seed &+ thread)
    var mappings = [(base: UnsafeMutableRawPointer, length: Int)?](repeating: nil, count: 100)
    while !isOver.load(ordering: .relaxed) {
      let place = random.below(mappings.count)
      if let old = mappings[place] { munmap(old.base, old.length) }
      let length = (1 + random.below(64)) * pageSize
      let base = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      mappings[place] = base == MAP_FAILED ? nil : base.map { ($0, length) }
    }
    for case let old? in mappings { munmap(old.base, old.length) }
  }

  @Test func aProcessThatIsNotThereIsAnError() {
    #expect(throws: KernelError.self) {
      var map = MemoryMap(processID: Int32.max)
      _ = try map.regions(withFlags: false)
    }
  }

  /// What smaps says in pieces, one mapping or more at a time, is what it says at once.
  @Test func aWalkInPiecesIsTheWholeList() throws {
    try withMapping { page in
      var map = MemoryMap(processID: getpid())
      try map.beginWalk()
      var pieces: [MappedRegion] = []
      var count = 0
      while map.isWalking {
        for region in try map.nextPiece(0, pagemap: -1) { MemoryMap.append(region, to: &pieces) }
        count += 1
      }
      #expect(count > 1)
      #expect(Self.isInAddressOrder(pieces))
      let found = try #require(pieces.first { $0.start == page })
      #expect(found.end == page + 3 && found.anonymous && found.writable && !found.excluded)
    }
  }

  /// A single mapping is the same by PROCMAP_QUERY and by the list.
  @Test(arguments: [false, true]) func aSingleMappingIsFound(byList: Bool) throws {
    let descriptor = byList ? -1 : open("/proc/self/maps", O_RDONLY | O_CLOEXEC)
    defer { if descriptor >= 0 { close(descriptor) } }
    let lookup = MappingLookup(descriptor: descriptor)
    guard byList || lookup.works else { return }
    try withMapping { page in
      var map = MemoryMap(processID: getpid(), lookup: lookup)
      let found = try #require(try map.region(holding: page + 1))
      #expect(found.start == page && found.end == page + 3)
      #expect(found.anonymous && found.readable && found.writable && !found.growsDown)
      let next = try #require(try map.region(endingAfter: page + 3))
      #expect(next.start == page + 3 && next.isNoAccess && next.anonymous)
      let stack = try #require(try map.regions(withFlags: false).first { $0.growsDown })
      let same = try #require(try map.region(holding: stack.end - 1))
      #expect(same.growsDown && !same.anonymous)
    }
  }

  // glibc 2.42 on Linux 6.13: one mapping, whose low end is a guard that madvise makes. MADV_GUARD_INSTALL is 102, MAP_STACK 0x20000.
  private func withStacks(_ count: Int, pages: Int, _ body: (UInt64) throws -> Void) throws {
    let length = count * pages * pageSize
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | 0x20000
    let base = try #require(mmap(nil, length + 2 * pageSize, PROT_NONE, flags, -1, 0))
    defer { munmap(base, length + 2 * pageSize) }
    // Between other mappings, and not right above a guard of the old kind.
    #expect(mprotect(base, pageSize, PROT_READ) == 0)
    #expect(mprotect(base + pageSize, length, PROT_READ | PROT_WRITE) == 0)
    for index in 0..<count {
      guard madvise(base + pageSize + index * pages * pageSize, pageSize, 102) == 0 else { return }
    }
    try body(UInt64(UInt(bitPattern: base)) / UInt64(pageSize) + 1)
  }

  private func tellsGuards(_ pagemap: Int32) -> Bool {
    var run = vs_page_region()
    var walked: UInt64 = 0
    return vs_guard_scan(pagemap, UInt64(pageSize), 2 * UInt64(pageSize), &run, 1, &walked) >= 0
  }

  @Test(arguments: [1, 3]) func stacksWithGuardsOfMadviseAreSeen(count: Int) throws {
    let pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    defer { close(pagemap) }
    guard tellsGuards(pagemap) else { return }
    try withStacks(count, pages: 32) { page in
      var map = MemoryMap(processID: getpid())
      let all = try map.regions(withFlags: true, pagemap: pagemap)
      for index in 0..<UInt64(count) {
        for place in [index * 32 + 1, index * 32 + 31] {
          let found = try #require(all.first { $0.start <= page + place && page + place < $0.end })
          #expect(found.excluded, "page \(place)")
        }
      }
      #expect(Self.isInAddressOrder(all))
    }
  }

  /// An allocator's arena without huge pages, right above a guard.
  @Test func memoryLargerThanAStackIsNone() throws {
    let pages = 32 << 20 / pageSize
    let base = try #require(mmap(nil, (pages + 1) * pageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
    defer { munmap(base, (pages + 1) * pageSize) }
    #expect(mprotect(base + pageSize, pages * pageSize, PROT_READ | PROT_WRITE) == 0)
    #expect(madvise(base + pageSize, pages * pageSize, Int32(MADV_NOHUGEPAGE)) == 0)
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(3), &limit)
    guard limit.rlim_cur == UInt64.max || limit.rlim_cur < UInt64(pages * pageSize) else { return }
    let page = UInt64(UInt(bitPattern: base)) / UInt64(pageSize) + 1
    #expect(try region(at: page, withFlags: true)?.excluded == false)
    // A piece of it that is no larger than one is.
    #expect(mprotect(base + pageSize + (1 << 20), pages * pageSize - (1 << 20), PROT_NONE) == 0)
    #expect(try region(at: page, withFlags: true)?.excluded == true)
  }
}
