import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct ThreadTests {
  /// A detached thread may have ended, and its memory may be gone, before whoever started it goes on: nothing of it is touched then.
  @Test func threadsThatEndAtOnceDoNoHarm() throws {
    final class Count: Sendable { let ended = Atomic(0) }
    let count = Count()
    for started in 0..<5000 {
      try Thread.start("short") { count.ended.add(1, ordering: .relaxed) }
      // Not all of them at a time.
      while count.ended.load(ordering: .relaxed) < started - 100 { usleep(1000) }
    }
    while count.ended.load(ordering: .relaxed) < 5000 { usleep(1000) }
  }
}
