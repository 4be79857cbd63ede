import Testing
import VSwapAPI

@testable import VSwapDaemon

@Suite struct GroupAccountTests {
  @Test func withoutALimitThereIsAlwaysRoom() {
    let account = GroupAccount.create(limit: .none)
    defer { account.destroy() }
    account.measured(residentPages: 1 << 30)
    #expect(account.room > 1 << 40)
    #expect(!account.isNearLimit)
  }

  @Test func roomFollowsWhatIsMappedAndEvicted() {
    let account = GroupAccount.create(limit: .fixed(pages: 16384))
    defer { account.destroy() }
    account.measured(residentPages: 16000)
    account.mapped(pages: 300)
    #expect(account.room == 84)
    account.evicted(pages: 500)
    #expect(account.room == 584)
    account.reserve = 1000
    #expect(account.room == -416)
    account.unreclaimable = true
    #expect(account.room > 1 << 40, "nobody waits for what cannot happen")
  }

  @Test(arguments: [1024, 4096, 16384, 65536, 1 << 20]) func watermarksAreOrdered(limit: Int) {
    let account = GroupAccount.create(limit: .fixed(pages: limit))
    defer { account.destroy() }
    for reserve in [0, GroupAccount.growthReserve(ofLimit: limit)] {
      account.reserve = reserve
      #expect(account.low < account.high)
      #expect(account.high < limit - reserve)
      #expect(account.low >= limit / 2)
    }
  }

  @Test func peaksStay() {
    let account = GroupAccount.create(limit: .fixed(pages: 100))
    defer { account.destroy() }
    account.measured(residentPages: 90)
    account.measured(residentPages: 10)
    account.swappedChanged(by: 7)
    account.swappedChanged(by: -5)
    #expect(account.peakResident == 90)
    #expect(account.peakSwapped == 7)
    #expect(account.swapped == 2)
  }

  /// Whoever asks for it: a program that is given less than it takes to start crawls.
  @Test func noLimitIsBelowTheLeast() {
    #expect(GroupLimit.leastBytes == ByteSize.minimumLimit)
    #expect(GroupLimit.fixed(bytes: 4096) == .fixed(pages: 1024) && GroupLimit.fixed(bytes: 8 << 20) == .fixed(pages: 2048))
  }
}
