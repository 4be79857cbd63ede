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
}
