import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct DescriptorReserveTests {
  @Test func whatIsGivenUpComesBack() {
    let reserve = DescriptorReserve.create(atMost: 3)
    defer { reserve.destroy() }
    #expect(reserve.capacity == 3 && reserve.isWhole)
    #expect(reserve.giveUp(2) && !reserve.isWhole)
    reserve.refill()
    #expect(reserve.isWhole)
    #expect(reserve.giveUp(4) && !reserve.giveUp(1), "there are no more")
    reserve.refill()
    #expect(reserve.isWhole)
  }

  @Test func withoutAnyNothingIsMissing() {
    let reserve = DescriptorReserve.create(atMost: 0)
    defer { reserve.destroy() }
    #expect(reserve.isWhole && !reserve.giveUp(1))
  }
}
