import CUserfault
import CVSwapWire
import Glibc

/// The thread that measures groups and asks pagers for evictions, as kswapd does: above a high watermark reclaim begins, below a low one
/// it ends. It looks the more often the less room is left, so that memory cannot grow past a limit between two looks.
final class LimitKeeper: @unchecked Sendable {
  private let registry: TargetRegistry
  private let budget: FrameBudget
  private let bell: Int32
  private let sharedMemory = SharedMemory()
  private var quotas: QuotaWatch
  private var watched: [Watched] = []
  /// `registry.changeCount` when `watched` was made.
  private var seenChanges = -1

  /// A group, and when it is to be looked at.
  private struct Watched {
    let group: Group
    var targets: [Target]
    /// Of each target, those whose process is known.
    var children: [[YoungProcess]]
    var memory: Memory
    /// Monotonic nanoseconds.
    var due: UInt64 = 0
  }

  /// How long room stays reserved after growth that nobody granted: a program that maps memory now and then goes on to do so.
  private static let reserveNanoseconds: UInt64 = 1_000_000_000

  /// What is remembered of a group between two looks.
  private struct Memory {
    var wasNear = false
    var grewUnseenAt: UInt64 = 0
    var unseen = UnseenGrowth()
    var registrations = 0
    let shared = SharedMemory.Figure()
    var sharedMeasuredAt: UInt64 = 0
    /// CPU time of the targets and the group's account when it was looked at last, and since when neither has changed.
    var cpu: Int64 = -1
    var resident = -1
    var limit = GroupLimit.none
    var quietSince: UInt64 = 0
    var evictions = 0
    var evictedAt: UInt64 = 0
    var measuredAt: UInt64 = 0
    var unreclaimableUntil: UInt64 = 0
    var vain: [UInt32: Vain] = [:]
    var judgedAt: UInt64 = 0
    var tuner: LimitTuner?
  }

  /// What a target had swept in vain when it last evicted something, and when it last did either or was not asked to.
  private struct Vain {
    var swept: Int
    var evictions: Int
    var idleSince: UInt64
  }

  /// A target that was asked all the time and neither evicted nor swept is stopped or frozen, in nanoseconds. The others must not wait for it.
  private static let patience: UInt64 = 2_000_000_000

  /// Fastest growth that is reckoned with, in pages per millisecond: 4 GiB/s.
  private static let fastestGrowth = 1024

  /// `bell` is an eventfd, rung when there is something new to look at.
  init(registry: TargetRegistry, budget: FrameBudget, bell: Int32, quotas: QuotaWatch) {
    self.quotas = quotas
    self.registry = registry
    self.budget = budget
    self.bell = bell
  }

  func start() throws(KernelError) {
    try sharedMemory.start()
    try Thread.start("vswap-keeper") { [self] in
      // What this thread does is short, and late it is worthless. Without the right to it the limit holds less tightly.
      if vs_make_real_time(0) != 0 { _ = vs_favour_thread(0) }
      run()
    }
  }

  /// A target came or went, or a limit changed.
  func nudge() { _ = vs_eventfd_signal(bell) }

  private func run() {
    while true {
      if registry.changeCount != seenChanges { renew() }
      quotas.look(at: watched.map { ($0.group, $0.targets) }, now: vs_monotonic_ns())
      var next = vs_monotonic_ns() + 1_000_000_000
      for index in watched.indices {
        let now = vs_monotonic_ns()
        if watched[index].due <= now || watched[index].memory.limit != watched[index].group.account.currentLimit {
          let pause = visit(index, now)
          // What has time is looked at together: it is waking up that costs most.
          watched[index].due = pause < 2 * Self.grid ? now + pause : (now + pause) & ~(Self.grid - 1)
        }
        next = min(next, watched[index].due)
      }
      let now = vs_monotonic_ns()
      let pause = next > now ? (next - now) / 1000 : 0
      if vs_wait_readable(bell, pause) != 0 { vs_eventfd_clear(bell) }
    }
  }

  /// A power of two, in nanoseconds.
  private static let grid: UInt64 = 1 << 22

  /// What is remembered of a group outlasts this, as long as it has targets.
  private func renew() {
    // In this order: what changes in between is seen the next time.
    seenChanges = registry.changeCount
    var before: [ObjectIdentifier: Watched] = [:]
    for entry in watched { before[ObjectIdentifier(entry.group)] = entry }
    watched = registry.snapshot().map { group, targets in
      let children = targets.map { registry.children(of: $0) }
      guard var known = before[ObjectIdentifier(group)] else {
        return Watched(group: group, targets: targets, children: children, memory: Memory())
      }
      (known.targets, known.children, known.due) = (targets, children, 0)
      return known
    }
  }

  /// Looks at a group, or only whether there can be anything new: a program that has used no CPU time since has touched no memory. Returns nanoseconds
  /// until the next time.
  private func visit(_ index: Int, _ now: UInt64) -> UInt64 {
    let account = watched[index].group.account
    let cpu = cpuTime(of: watched[index])
    let isQuiet =
      cpu >= 0 && cpu == watched[index].memory.cpu && account.resident == watched[index].memory.resident
      && account.currentLimit == watched[index].memory.limit
    if !isQuiet { watched[index].memory.quietSince = now }
    if watched[index].memory.evictions != account.evictions {
      watched[index].memory.evictions = account.evictions
      watched[index].memory.evictedAt = now
    }
    let isSettled = isQuiet && now - watched[index].memory.evictedAt > Self.settling
    let pause = isSettled ? quietPause(account, quietFor: now - watched[index].memory.quietSince) : nil
    if let pause, now - watched[index].memory.measuredAt < pause.untilMeasured { return pause.nanoseconds }
    // Before the measurement: what is used and touched after it shows the next time.
    watched[index].memory.cpu = cpu
    watched[index].memory.limit = account.currentLimit
    watched[index].memory.measuredAt = now
    let microseconds = look(at: watched[index].group, watched[index].targets, watched[index].children, &watched[index].memory)
    watched[index].memory.resident = account.resident
    return pause?.nanoseconds ?? UInt64(microseconds) * 1000
  }

  /// Until agents have dropped what they moved last, in nanoseconds.
  private static let settling: UInt64 = 200_000_000

  /// Of all targets together; -1: there are processes whose time is not known.
  private func cpuTime(of group: Watched) -> Int64 {
    var sum: Int64 = 0
    for target in group.targets {
      let time = vs_cpu_time(target.processID)
      guard time >= 0, target.youngChildren == 0 else { return -1 }
      sum += time
    }
    return sum
  }

  /// How long a group may be left alone that does nothing, and how often it is measured all the same. When it begins to do something it may be as
  /// fast as any; near the limit it is its pagers that see most of that first. A group over its limit that does nothing is stopped, or has nothing that
  /// can be evicted. All in nanoseconds; nil: it may not.
  private func quietPause(_ account: GroupAccount, quietFor: UInt64) -> (nanoseconds: UInt64, untilMeasured: UInt64)? {
    guard account.reserve == 0, !account.limitIsAuto else { return nil }
    guard account.limit != nil else { return (1_000_000_000, 1_000_000_000) }
    let room = account.high - account.resident
    if room < 0 { return quietFor > 2 * Self.patience ? (100_000_000, 100_000_000) : nil }
    return (UInt64(min(max(room * 1000 / Self.fastestGrowth, 10_000), 200_000)) * 1000, 1_000_000_000)
  }

  /// Measures a group and asks for what is too much. Returns microseconds until the next look.
  private func look(
    at group: Group, _ targets: [Target], _ children: [[YoungProcess]], _ memory: inout Memory
  ) -> Int {
    let account = group.account
    let before = account.resident
    let evictions = account.evictions
    let resident = max(0, measure(targets, children) - shared(targets, children, &memory))
    account.measured(residentPages: resident)
    tune(account, targets, &memory)
    guard let limit = account.limit else { return 200_000 }
    let near = limit - resident < GroupAccount.closeness(toLimit: limit)
    let now = vs_monotonic_ns()
    let grew = memory.unseen.add(resident - before, evictions: evictions, targets: targets.count, now: now)
    let registrations = targets.reduce(0) { $0 + $1.counters.registrations }
    let growsUnseen = near && (grew || registrations > memory.registrations)
    memory.registrations = registrations
    // A look in vain is cheap, and a mapping that is found late is not.
    let mayGrow = near && resident - before > 32
    let approaches = near && !memory.wasNear
    if growsUnseen || mayGrow || approaches { watchGrowth(targets) }
    // Who comes near grew up to now, and nothing is known of how.
    if growsUnseen || approaches { memory.grewUnseenAt = now }
    let isRecent = now - memory.grewUnseenAt < Self.reserveNanoseconds
    let mostReserve = GroupAccount.growthReserve(ofLimit: limit)
    if approaches { memory.unseen.expect(burst: mostReserve, now: now) }
    account.reserve = isRecent ? min(max(memory.unseen.burst, GroupAccount.leastReserve), mostReserve) : 0
    if near { promoteChildren(targets) }
    memory.wasNear = near
    if resident > account.high { reclaim(resident - account.low, targets) }
    judge(targets, &memory, account, isOverLow: resident > account.low)
    let room = account.high - resident
    return growsUnseen || mayGrow ? 250 : min(max(room * 500 / Self.fastestGrowth, 1000), 100_000)
  }

  /// An automatic limit: lets its controller look, and evicts what that says.
  private func tune(_ account: GroupAccount, _ targets: [Target], _ memory: inout Memory) {
    guard account.limitIsAuto else {
      memory.tuner = nil
      return
    }
    if memory.tuner == nil { memory.tuner = LimitTuner(account, targets) }
    guard let decision = memory.tuner!.look(account, targets, isStuck: budget.isStuck) else { return }
    account.autoPages = decision.limitPages
    for target in targets where decision.skip > 0 {
      target.counters.skip = decision.skip * target.counters.resident / max(1, account.resident)
    }
    if decision.evict > 0 { reclaim(decision.evict, targets) }
  }

  private func measure(_ targets: [Target], _ children: [[YoungProcess]]) -> Int {
    var sum = 0
    for target in targets {
      let pages = vs_resident_pages(target.statm)
      target.counters.resident = max(0, Int(pages))
      sum += target.counters.resident
    }
    for family in children {
      for child in family { sum += max(0, Int(vs_resident_pages(child.statm))) }
    }
    return sum
  }

  /// Pages that parent and children still share count once: what statm counts too often, from Pss_Anon, a few times a second.
  private func shared(_ targets: [Target], _ children: [[YoungProcess]], _ memory: inout Memory) -> Int {
    guard targets.contains(where: \.isForked) || children.contains(where: { !$0.isEmpty }) else {
      memory.shared.pages = 0
      return 0
    }
    let now = vs_monotonic_ns()
    if now - memory.sharedMeasuredAt > 200_000_000 {
      memory.sharedMeasuredAt = now
      var processes = targets.map { SharedMemory.Process(processID: $0.memoryID, owner: $0, statm: $0.statm) }
      for child in children.joined() {
        processes.append(SharedMemory.Process(processID: child.processID, owner: child, statm: child.statm))
      }
      sharedMemory.renew(memory.shared, processes)
    }
    return memory.shared.pages
  }

  /// Mappings that are not registered can grow unseen: from now on first touches come to the pager. One that has not got that far since the last look may
  /// have no CPU: nice values count within an autogroup or a control group only, and the others get as much as it and the target together.
  private func watchGrowth(_ targets: [Target]) {
    for target in targets {
      if target.counters.unregisteredGrowth {
        target.pager?.hurry()
      } else {
        target.counters.unregisteredGrowth = true
        target.pager?.nudge()
      }
    }
  }

  /// Only a child with an agent can be evicted from.
  private func promoteChildren(_ targets: [Target]) {
    for target in targets where target.youngChildren > 0 {
      let word = vswap_family_promote(target.familyPage)!
      _ = vswap_add(word, 1)
      _ = vs_futex_wake(word, Int32.max)
    }
  }

  /// Shares what is to go among the targets by what each has.
  private func reclaim(_ pages: Int, _ targets: [Target]) {
    let sum = max(1, targets.reduce(0) { $0 + $1.counters.resident })
    for target in targets {
      let share = max(1, pages * target.counters.resident / sum)
      guard target.counters.wanted < share else { continue }
      target.counters.wanted = share
      target.pager?.nudge()
    }
  }

  /// Lets a group exceed its limit while nothing can be evicted from it. For a while at a time: every page that can be after all would
  /// otherwise make everybody wait for another round in vain.
  private func judge(_ targets: [Target], _ memory: inout Memory, _ account: GroupAccount, isOverLow: Bool) {
    let now = vs_monotonic_ns()
    // What was in vain before it got this far says nothing.
    if !isOverLow { memory.vain.removeAll(keepingCapacity: true) }
    if isOverLow && (isUnreclaimable(targets, &memory, now) || account.isOverQuota) {
      memory.unreclaimableUntil = now + 200_000_000
    }
    account.unreclaimable = now < memory.unreclaimableUntil && isOverLow
  }

  /// Every target went through all its memory and found nothing since it last evicted something, or does nothing at all; or there is nowhere to
  /// put anything.
  private func isUnreclaimable(_ targets: [Target], _ memory: inout Memory, _ now: UInt64) -> Bool {
    if budget.isStuck {
      if !budget.reserve(AgentLink.bankPages) { return true }
      budget.release(AgentLink.bankPages)
    }
    // Somebody who did not look does not know what the targets did.
    if now - memory.judgedAt > Self.patience / 2 { memory.vain = [:] }
    memory.judgedAt = now
    // Without frames nobody is idle: it is the compression or the disk that is late.
    let hasFrames = budget.hasFrames(AgentLink.bankPages)
    var all = true
    for target in targets {
      let swept = target.counters.sweptInVain
      let evictions = target.counters.evictions
      var last = memory.vain[target.id] ?? Vain(swept: swept, evictions: evictions, idleSince: now)
      if evictions != last.evictions { last = Vain(swept: swept, evictions: evictions, idleSince: now) }
      if swept != last.swept || target.counters.wanted == 0 || !hasFrames { last.idleSince = now }
      memory.vain[target.id] = last
      if swept == last.swept && now - last.idleSince < Self.patience { all = false }
    }
    return all
  }
}
