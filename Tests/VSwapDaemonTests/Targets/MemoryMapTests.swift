import CUserfault
import Glibc
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
    #expect(zip(all, all.dropFirst()).allSatisfy { $0.end <= $1.start }, "in address order")
  }

  @Test func aProcessThatIsNotThereIsAnError() {
    #expect(throws: KernelError.self) {
      var map = MemoryMap(processID: Int32.max)
      _ = try map.regions(withFlags: false)
    }
  }
}
