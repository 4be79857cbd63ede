import CUserfault

/// Adds up how long a target's threads wait for swapped pages, as its pager sees it: what `--limit auto` goes by, in the place
/// of PSI, which does not see a thread that waits for a userfaultfd. For groups with that limit only.
struct StallClock {
  /// When what waited was counted last; 0: not at all so far.
  private var countedUntil: UInt64 = 0
  private var beganAt: UInt64 = 0
  private var faultsBefore = 0
  private var waiting = 0

  /// The way of a fault to the pager and back, in nanoseconds: two context switches that the pager does not see.
  private static let switching: UInt64 = 8000

  /// The pager is about to look for faults, of which it has served `faults` so far.
  @inline(__always)
  mutating func begin(faults: Int, _ account: GroupAccount) {
    guard account.limitIsAuto else {
      countedUntil = 0
      return
    }
    beganAt = vs_monotonic_ns()
    if countedUntil > 0 && waiting > 0 { account.stalled(nanoseconds: UInt64(waiting) * (beganAt - countedUntil)) }
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
    if served > 0 { account.stalled(nanoseconds: UInt64(served) * (countedUntil - beganAt + Self.switching)) }
  }
}
