import CUserfault
import Glibc

/// Takes the samples that the controller of an automatic limit decides by.
struct LimitTuner {
  private var controller = AutoLimit()
  private var last: Totals
  /// What was asked for last, and how often each target had swept in vain then.
  private var asked = 0
  private var sweptInVain: [UInt32: Int] = [:]
  private var isVain = false

  /// Sums that only grow.
  private struct Totals {
    var at: UInt64
    var evictions: Int
    var faults: Int
    var stalled: UInt64
    var cpu: UInt64
  }

  init(_ account: GroupAccount, _ targets: [Target]) {
    last = Self.totals(account, targets)
  }

  /// Returns what to do, once per interval; nil in between.
  mutating func look(_ account: GroupAccount, _ targets: [Target], isStuck: Bool) -> AutoLimit.Decision? {
    if asked > 0 { noteVain(targets) }
    let now = Self.totals(account, targets)
    guard now.at - last.at >= AutoLimit.intervalNanoseconds else { return nil }
    let sample = AutoLimit.Sample(
      nanoseconds: now.at - last.at, residentPages: account.resident, swappedPages: account.swapped,
      evictions: now.evictions - last.evictions, faults: now.faults - last.faults,
      stalledNanoseconds: now.stalled - last.stalled, cpuNanoseconds: now.cpu > last.cpu ? now.cpu - last.cpu : 0,
      isVain: isVain || isStuck)
    let decision = controller.decide(sample)
    // What is left over from the last time was meant for then.
    for target in targets { target.counters.withdraw(asked) }
    last = now
    isVain = false
    asked = decision.evict
    for target in targets { sweptInVain[target.id] = target.counters.sweptInVain }
    return decision
  }

  /// A target without anything to evict would look for it again and again.
  private mutating func noteVain(_ targets: [Target]) {
    for target in targets where target.counters.wanted > 0 && target.counters.sweptInVain != sweptInVain[target.id] {
      target.counters.withdraw(asked)
      isVain = true
    }
  }

  private static func totals(_ account: GroupAccount, _ targets: [Target]) -> Totals {
    Totals(
      at: vs_monotonic_ns(), evictions: account.evictions, faults: account.faults, stalled: account.stalledNanoseconds,
      cpu: targets.reduce(0) { $0 + cpuTime(of: $1.processID) })
  }

  /// Nanoseconds; 0 for a process that has gone.
  private static func cpuTime(of processID: Int32) -> UInt64 {
    var clock = clockid_t()
    var time = timespec()
    guard clock_getcpuclockid(processID, &clock) == 0, clock_gettime(clock, &time) == 0 else { return 0 }
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
