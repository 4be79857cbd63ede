import CUserfault

/// Adds up how long a target's threads wait for swapped pages, as its pager sees it: what `--limit auto` goes by, in the place
/// of PSI, which does not see a thread that waits for a userfaultfd. For groups with that limit only.
struct StallClock {
  /// When what waited was counted last; 0: not at all so far.
  private var countedUntil: UInt64 = 0
  private var restedAt: UInt64 = 0
  private var beganAt: UInt64 = 0
  /// How long what is found now has waited already, since the pager was busy elsewhere.
  private var late: UInt64 = 0
  private var faultsBefore = 0
  private var waiting = 0
  /// What the scheduler says of the pager's thread, and what it is woken late by on average.
  private var runs = (delay: UInt64(0), count: UInt64(0))
  private var wakeDelay: UInt64 = 0
  private var faultsUntilLook = 0

  /// The way of a fault to the pager and back, in nanoseconds: two context switches that the pager does not see.
  private static let switching: UInt64 = 8000
  /// A shorter rest was none: there were faults already.
  private static let leastRest: UInt64 = 10_000
  private static let faultsPerLook = 16

  /// The pager is about to wait for something to do.
  @inline(__always)
  mutating func rest() {
    if countedUntil > 0 { restedAt = vs_monotonic_ns() }
  }

  /// The pager is about to look for faults, of which it has served `faults` so far.
  @inline(__always)
  mutating func begin(faults: Int, _ account: GroupAccount) {
    guard account.limitIsAuto else {
      countedUntil = 0
      return
    }
    beganAt = vs_monotonic_ns()
    late = 0
    if countedUntil > 0 {
      if waiting > 0 { account.stalled(nanoseconds: UInt64(waiting) * (beganAt - countedUntil)) }
      if restedAt > countedUntil && beganAt - restedAt < Self.leastRest { late = (restedAt - countedUntil) / 2 }
    }
    faultsBefore = faults
    countedUntil = beganAt
  }

  /// It has served those that it found; `waiting` others are parked, or wait for a read from a swap area.
  @inline(__always)
  mutating func end(faults: Int, waiting: Int, _ account: GroupAccount) {
    guard countedUntil > 0 else { return }
    countedUntil = vs_monotonic_ns()
    self.waiting = waiting
    let served = faults - faultsBefore
    guard served > 0 else { return }
    faultsUntilLook -= served
    if faultsUntilLook <= 0 { learnDelay() }
    account.stalled(nanoseconds: UInt64(served) * (late + wakeDelay + countedUntil - beganAt + Self.switching))
  }

  /// The pager's thread will wait for its CPU for other reasons.
  mutating func forgetDelay() { (runs.count, wakeDelay) = (0, 0) }

  private mutating func learnDelay() {
    faultsUntilLook = Self.faultsPerLook
    var now = (delay: UInt64(0), count: UInt64(0))
    guard vs_run_delay(&now.delay, &now.count) == 0, now.count > runs.count else { return }
    if runs.count > 0 { wakeDelay = (now.delay - runs.delay) / (now.count - runs.count) }
    runs = now
  }
}
