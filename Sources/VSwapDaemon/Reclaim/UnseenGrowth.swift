import CVSwapWire

/// Finds out whether memory grows that no pager has mapped, from what each measurement is above the account.
///
/// One measurement says little. A page that was moved is resident until the agent drops its copy at the end of the command, but
/// subtracted when the pager takes the record, be it before the drop or after. Such differences cancel out; growth adds up.
struct UnseenGrowth {
  private var sum = 0
  /// The measurement from which on `sum` counts.
  private var start: (evictions: Int, time: UInt64) = (0, 0)
  private var latest: (evictions: Int, time: UInt64) = (0, 0)

  /// Pages that appear unseen within `burstNanoseconds`, as of late: halved every 100 ms.
  private(set) var burst = 0
  private var halvedAt: UInt64 = 0

  /// As long a busy machine may keep the pager from running.
  private static let burstNanoseconds: UInt64 = 16_000_000
  /// Shorter spells say nothing of a rate.
  private static let shortest: UInt64 = 1_000_000

  /// More than that is growth.
  private static let tolerance = 32
  /// Pages of one target that may be counted too early or too late: a command whose pages wait to be dropped, all whose records wait to be
  /// taken.
  private static let inFlight = (1 + Int(VSWAP_BANKS)) * Int(VSWAP_BANK_PAGES)
  /// What took longer to grow is no danger.
  private static let windowNanoseconds: UInt64 = 100_000_000

  /// A measurement at `now` was that many pages above the account. Returns whether memory grew unseen; `evictions` are those of all time.
  mutating func add(_ pages: Int, evictions: Int, targets: Int, now: UInt64) -> Bool {
    if sum == 0 || now - start.time > Self.windowNanoseconds {
      sum = 0
      start = latest
    }
    while burst > 0 && now - halvedAt > Self.windowNanoseconds {
      burst /= 2
      halvedAt += Self.windowNanoseconds
    }
    latest = (evictions, now)
    sum = max(0, sum + pages)
    let uncertain = min(evictions - start.evictions, Self.inFlight * targets)
    guard sum > Self.tolerance + uncertain else { return false }
    let spell = max(now - start.time, Self.shortest)
    expect(burst: (sum - uncertain) * Int(Self.burstNanoseconds) / Int(spell), now: now)
    sum = 0
    return true
  }

  /// At least that much is reckoned with for a while.
  mutating func expect(burst pages: Int, now: UInt64) {
    guard pages > burst else { return }
    (burst, halvedAt) = (pages, now)
  }
}
