import Testing

@testable import VSwapDaemon

@Suite struct UnseenGrowthTests {
  private static let millisecond: UInt64 = 1_000_000

  @Test func growthWithoutEvictionsIsSeenAtOnce() {
    var growth = UnseenGrowth()
    let once = growth.add(20, evictions: 0, targets: 1, now: Self.millisecond)
    let twice = growth.add(20, evictions: 0, targets: 1, now: 2 * Self.millisecond)
    #expect(!once && twice)
  }

  /// A command's pages are subtracted before the agent drops them, or after: up and down, for as long as anybody likes.
  @Test func evictionsAreNoGrowth() {
    var growth = UnseenGrowth()
    for round in 1...1000 {
      let late = round % 2 == 0
      let grew = growth.add(
        late ? 256 : -256, evictions: round * 256, targets: 1, now: UInt64(round) * Self.millisecond)
      #expect(!grew)
    }
  }

  @Test func growthBehindEvictionsAddsUp() {
    var growth = UnseenGrowth()
    let found = (1...20).contains { round in
      growth.add(100, evictions: round * 256, targets: 1, now: UInt64(round) * Self.millisecond)
    }
    #expect(found)
  }

  @Test func slowGrowthIsForgotten() {
    var growth = UnseenGrowth()
    for round in 1...1000 {
      let grew = growth.add(1, evictions: 0, targets: 1, now: UInt64(round) * 10 * Self.millisecond)
      #expect(!grew)
    }
  }

  /// What is kept free for unseen growth follows its rate, and is forgotten by halves.
  @Test func burstsFollowTheRate() {
    var growth = UnseenGrowth()
    growth.expect(burst: 8192, now: Self.millisecond)
    for round in 2...400 {
      _ = growth.add(0, evictions: 0, targets: 1, now: UInt64(round) * 5 * Self.millisecond)
    }
    #expect(growth.burst == 0)
    let now = 2100 * Self.millisecond
    let first = growth.add(20, evictions: 0, targets: 1, now: now)
    let second = growth.add(108, evictions: 0, targets: 1, now: now + 2 * Self.millisecond)
    #expect(!first && second)
    // 128 pages since the look before, which is 107 ms ago or as much as the spell lasted.
    #expect(growth.burst > 0 && growth.burst <= 128 * 16)
  }
}
