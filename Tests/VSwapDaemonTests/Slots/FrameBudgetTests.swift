import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct FrameBudgetTests {
  /// What left a target cannot go back: whoever was promised frames gets them, though others are between two steps of giving theirs back.
  @Test func whatWasPromisedIsThere() throws {
    #if DEBUG
      Interleaving.rarity.store(50, ordering: .relaxed)
      defer { Interleaving.rarity.store(0, ordering: .relaxed) }
    #endif
    let layer = try SlotLayer.create(maximumSlots: 64, cacheFrames: 3, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 20)
    defer { layer.destroy() }
    onThreads(4) { _ in
      var left = TestScale.rounds(20_000)
      while left > 0 {
        guard layer.budget.reserve(1) else {
          sched_yield()
          continue
        }
        left -= 1
        let frame = layer.cache.allocate()
        layer.budget.release(1)
        if let frame { layer.cache.free(frame) } else { Issue.record("the frame that was promised is not there") }
      }
    }
    #expect(layer.cache.freeFrames == 3 && layer.budget.reserve(3))
  }

  /// However many ask and give nothing back, there is something for the next one.
  @Test func nobodyTakesAllFrames() throws {
    let layer = try SlotLayer.create(maximumSlots: 8192, cacheFrames: 4096, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 20)
    defer { layer.destroy() }
    let shares = (0..<16).map { _ in layer.budget.reserveShare(atMost: AgentLink.bankPages) }
    #expect(shares.allSatisfy { $0 > 0 } && shares[0..<8].allSatisfy { $0 == AgentLink.bankPages })
    #expect(layer.budget.reserveShare(atMost: 16) == 16)
    #expect(layer.budget.reserved == shares.reduce(16, +) && layer.budget.reserved <= 4096)
  }
}
