import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct AgentBoostTests {
  private typealias Account = AgentBoost.Account

  @Test func evictingIsPaidFor() {
    var account = Account()
    account.open(now: 0, time: 7, pages: 3)
    #expect(!account.isDue(now: Account.window - 1) && account.isDue(now: Account.window))
    let first = account.isHonest(now: Account.window, time: 7 + Account.besides + 100 * Account.perPage, pages: 103)
    // Each window stands for itself.
    let second = account.isHonest(now: 2 * Account.window, time: 7 + 2 * Account.besides + 100 * Account.perPage, pages: 103)
    #expect(first && second && account.deniedUntil == 0)
  }

  @Test func whoComputesGoesWithout() {
    var account = Account()
    account.open(now: 0, time: 0, pages: 0)
    let honest = account.isHonest(now: Account.window, time: Account.besides + 10 * Account.perPage + 1, pages: 10)
    #expect(!honest && account.deniedUntil == Account.window + Account.penance)
  }

  /// Its clock, or its count of pages, is another one all at once.
  @Test func oddFiguresDoNoHarm() {
    var account = Account()
    account.open(now: 0, time: 1000, pages: 1000)
    let backwards = account.isHonest(now: 1, time: 0, pages: 0)
    let endless = account.isHonest(now: 2, time: .max, pages: 0)
    #expect(backwards && !endless)
  }

  private static func nice() -> Int32 { getpriority(PRIO_PROCESS, id_t(gettid())) }

  /// What a favoured thread starts is an ordinary one, and it is itself one afterwards.
  @Test func theFavourIsNotInheritedAndTakenBack() throws {
    let promise = Promise<[Int32]>()
    try Thread.start("favoured") {
      var boost = AgentBoost(agent: gettid(), of: getpid())
      boost.asked(pages: 0)
      guard boost.isOn else {
        _ = promise.fulfil([])
        return
      }
      let favoured = Self.nice()
      let child = Promise<Int32>()
      try? Thread.start("child") { _ = child.fulfil(Self.nice()) }
      let inherited = child.wait()
      boost.end()
      promise.fulfil([favoured, inherited, Self.nice()])
    }
    let seen = promise.wait()
    // Without the right to it nothing happens.
    if !seen.isEmpty { #expect(seen == [-19, 0, 0]) }
  }

  @Test func aProcessThatDoesNotShareTheProgramsMemoryIsLeftAlone() throws {
    var boost = AgentBoost(agent: getppid(), of: getpid())
    boost.asked(pages: 0)
    #expect(!boost.isOn)
  }
}
