/// Finds the smallest resident set that a group does with: the controller of `--limit auto`.
///
/// It is made like Meta's senpai (github.com/facebookincubator/senpai; Weiner et al., "TMO: Transparent Memory Offloading in
/// Datacenters", ASPLOS 2022): a little memory is taken away, and how much the program suffers says how much to take next. As in TMO
/// what is taken is evicted once, instead of lowering a limit that would hold the program back while it grows or its working set
/// moves: a working set is left at a cliff, and one page below it everybody would wait.
///
/// What senpai reads from PSI is here the time that threads waited for swapped pages. The group has a *budget* of such time, a
/// hundredth of the time that passes. Eviction goes on as long as there is some, by as many pages as would use it up if they came back
/// like those before them. Past it nothing is evicted until the debt is paid.
///
/// There is no accessed bit, so what is evicted are samples, too: where most pages come back, reclaim leaves out the next ones, more each
/// time, until it finds some that stay away.
///
/// A value: the same samples give the same decisions.
struct AutoLimit {
  /// Since the last sample, unless said otherwise.
  struct Sample {
    var nanoseconds: UInt64
    /// Now.
    var residentPages: Int
    /// Now, pages that only the daemon has.
    var swappedPages: Int
    var evictions: Int
    var faults: Int
    /// Time that threads waited for swapped pages, all together.
    var stalledNanoseconds: UInt64
    /// CPU time of the processes.
    var cpuNanoseconds: UInt64
    /// Of what was asked for last something could not be evicted, or there is nowhere to put it.
    var isVain = false
  }

  struct Decision: Equatable {
    /// Pages to evict now.
    var evict: Int
    /// Pages of the address space to leave out before that.
    var skip: Int
    /// What the group is left with.
    var limitPages: Int
  }

  /// Between two samples.
  static let intervalNanoseconds: UInt64 = 1_000_000_000
  /// Share of the time that threads may wait.
  static let target = 0.01
  /// Below that nothing is evicted: the smallest limit that can be set.
  static let floorPages = 1024
  /// Most pages per interval: of a program that works, and of one that does nothing and shows by nothing what it will need.
  static func most(of residentPages: Int, isIdle: Bool) -> Int {
    min(max(16, residentPages / (isIdle ? 200 : 20)), 4096)
  }

  /// Most that is saved up and most that is owed, in intervals.
  private static let credit = 4.0
  private static let debt = 10.0
  /// The least share of the budget that is spent once a working set is found.
  private static let leastShare = 1.0 / 16
  private static let usualCost = 20_000.0
  /// The least that is left out, and the least evictions that say anything about what comes next.
  private static let leastSkip = 512
  private static let leastSample = 32
  /// CPU time of the agent for a page, which is none of the program's.
  private static let agentNanoseconds = 5000.0

  /// Nanoseconds that threads may wait from now on; negative: a debt.
  private var budget = 0.0
  /// What a fault costs, in nanoseconds.
  private var faultCost = Self.usualCost
  /// Recent evictions and faults, older ones for less. Begins with the worst: everything comes back.
  private var recent = (evictions: 64.0, faults: 64.0)
  /// Part of the budget that is spent: all of it while that frees memory, less and less when it does not.
  private var share = 1.0
  private var round: Round?
  /// Evictions and faults since the last decision to leave something out, or not to; and how much that was.
  private var sampled = (evictions: 0, faults: 0)
  private var skip = 0
  /// Intervals to wait, and how many to wait the next time, where nothing can be evicted.
  private var pause = 0
  private var nextPause = 1

  /// Evictions of a quarter of what was resident: enough to tell whether there is something to gain.
  private struct Round {
    var residentPages: Int
    var swappedPages: Int
    var evictions = 0
  }

  mutating func decide(_ sample: Sample) -> Decision {
    settle(sample)
    learn(sample)
    judgeRound(sample)
    let evict = isPaused(sample) ? 0 : step(sample)
    return Decision(evict: evict, skip: leaveOut(sample), limitPages: max(Self.floorPages, sample.residentPages - evict))
  }

  /// The time that can be lost: that which passed, more where several threads worked at once.
  private func busyTime(_ sample: Sample) -> Double { Double(max(sample.nanoseconds, sample.cpuNanoseconds)) }

  private mutating func settle(_ sample: Sample) {
    let interval = Double(Self.intervalNanoseconds) * Self.target
    let after = budget + busyTime(sample) * Self.target * share - Double(sample.stalledNanoseconds)
    budget = min(max(after, -Self.debt * interval), Self.credit * interval)
  }

  private mutating func learn(_ sample: Sample) {
    if sample.faults >= 8 {
      let cost = Double(sample.stalledNanoseconds) / Double(sample.faults)
      // Up at once, down slowly: what is too much is paid for by the program.
      faultCost = min(max(cost, faultCost * 0.75 + cost * 0.25, 5000), 5_000_000)
    } else {
      // Too few to tell. Back to what is usual, or one bad moment would count for as long as nothing comes back.
      faultCost = max(faultCost * 0.75, min(faultCost, Self.usualCost))
    }
    recent.evictions = recent.evictions * 0.75 + Double(sample.evictions)
    recent.faults = recent.faults * 0.75 + Double(sample.faults)
  }

  /// What came back of each page that went; a good run is believed up to one in 16.
  private var returning: Double { min(max((recent.faults + 1) / (recent.evictions + 1), 1.0 / 16), 1) }

  private mutating func judgeRound(_ sample: Sample) {
    var now = round ?? Round(residentPages: sample.residentPages, swappedPages: sample.swappedPages)
    now.evictions += sample.evictions
    // The working set has moved, or the program grew: there is something to gain again.
    let suffers = Double(sample.stalledNanoseconds) > busyTime(sample) * Self.target && sample.faults > 2 * sample.evictions
    let grew = sample.residentPages > now.residentPages + now.residentPages / 4
    if suffers || grew {
      share = 1
    } else if now.evictions >= now.residentPages / 4 {
      let gain = Double(sample.swappedPages - now.swappedPages) / Double(max(1, now.evictions))
      if gain < 0.125 { share = max(share / 2, Self.leastShare) } else if gain > 0.25 { share = 1 }
    } else {
      round = now
      return
    }
    round = Round(residentPages: sample.residentPages, swappedPages: sample.swappedPages)
  }

  private mutating func isPaused(_ sample: Sample) -> Bool {
    if sample.isVain && sample.evictions == 0 {
      pause = nextPause
      nextPause = min(nextPause * 2, 64)
    } else if sample.evictions > 0 {
      nextPause = 1
    }
    guard pause > 0 else { return false }
    pause -= 1
    return true
  }

  private mutating func leaveOut(_ sample: Sample) -> Int {
    sampled.evictions += sample.evictions
    sampled.faults += sample.faults
    guard sampled.evictions >= Self.leastSample else { return 0 }
    let isInUse = sampled.faults > sampled.evictions / 2
    sampled = (0, 0)
    skip = isInUse ? min(max(skip * 2, Self.leastSkip), sample.residentPages / 4) : 0
    return skip
  }

  private func step(_ sample: Sample) -> Int {
    let room = sample.residentPages - Self.floorPages
    guard budget > 0, room > 0 else { return 0 }
    let work = Double(sample.cpuNanoseconds) - Double(sample.evictions) * Self.agentNanoseconds
    let isIdle = work < Double(sample.nanoseconds) * 0.01
    let affordable = Int(budget / (faultCost * returning))
    return min(room, affordable, Self.most(of: sample.residentPages, isIdle: isIdle))
  }
}
