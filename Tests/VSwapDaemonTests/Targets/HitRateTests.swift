import Testing

@testable import VSwapDaemon

@Suite struct HitRateTests {
  @Test func itBeginsWithTrustAndDecays() {
    var rate = HitRate()
    #expect(rate.current == 1 && rate.share(of: 31) == 31)
    var before = rate.current
    for _ in 0..<5 {
      rate.miss()
      #expect(rate.current < before)
      before = rate.current
    }
    // 0.875 to the power of 5 is 0.51: half of all have come true, so far.
    #expect(rate.share(of: 31) == 31)
    rate.miss()
    #expect(rate.share(of: 31) < 31 && rate.share(of: 31) > 20)
    for _ in 0..<60 { rate.miss() }
    #expect(rate.share(of: 31) == 0)
    for _ in 0..<6 { rate.hit() }
    #expect(rate.share(of: 31) == 31)
  }

  /// As many hits as misses, in any order, turn nothing down for long.
  @Test func halfIsEnough() {
    var rate = HitRate()
    var least = 1.0
    for _ in 0..<1000 {
      rate.miss()
      rate.hit()
      least = min(least, rate.current)
    }
    #expect(least > 0.45 && rate.share(of: 16) >= 15)
  }
}
