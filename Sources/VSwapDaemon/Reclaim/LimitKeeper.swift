import CUserfault
import CVSwapWire
import Glibc

/// The thread that measures groups and asks pagers for evictions, as kswapd does: above a high watermark reclaim begins, below a low one
/// it ends. It looks the more often the less room is left, so that memory cannot grow past a limit between two looks.
final class LimitKeeper: @unchecked Sendable {
  private let registry: TargetRegistry
  private let budget: FrameBudget
  private let bell: Int32
  private var quotas: QuotaWatch
  private var known: [ObjectIdentifier: Memory] = [:]
  /// Children without an agent: process number to an open statm, and the target that named them.
  private var young: [Int32: (statm: Int32, parent: UInt32)] = [:]

  /// How long room stays reserved after growth that nobody granted: a program that maps memory now and then goes on to do so.
  private static let reserveNanoseconds: UInt64 = 1_000_000_000

  /// What is remembered of a group between two looks.
  private struct Memory {
    /// Kept, so that no other one comes to be where it was while something is remembered of it.
    let group: Group
    var wasNear = false
    var grewUnseenAt: UInt64 = 0
    var unseen = UnseenGrowth()
    var registrations = 0
    var sharedPages = 0
    var sharedMeasuredAt: UInt64 = 0
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
      var pause = 1_000_000
      var present: Set<ObjectIdentifier> = []
      let groups = registry.snapshot()
      quotas.look(at: groups, now: vs_monotonic_ns())
      for (group, targets) in groups {
        present.insert(ObjectIdentifier(group))
        pause = min(pause, look(at: group, targets))
      }
      for key in known.keys where !present.contains(key) { known[key] = nil }
      forgetYoung()
      if vs_wait_readable(bell, UInt64(pause)) != 0 { vs_eventfd_clear(bell) }
    }
  }

  /// Measures a group and asks for what is too much. Returns microseconds until the next look.
  private func look(at group: Group, _ targets: [Target]) -> Int {
    let key = ObjectIdentifier(group)
    var memory = known[key] ?? Memory(group: group)
    defer { known[key] = memory }
    let account = group.account
    let before = account.resident
    let evictions = account.evictions
    let resident = max(0, measure(targets) - shared(targets, &memory))
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
    account.reserve = isRecent ? GroupAccount.growthReserve(ofLimit: limit) : 0
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

  private func measure(_ targets: [Target]) -> Int {
    var sum = 0
    for target in targets {
      let pages = vs_resident_pages(target.statm)
      target.counters.resident = max(0, Int(pages))
      sum += target.counters.resident
      if target.youngChildren > 0 { sum += measureYoung(of: target, besides: targets) }
    }
    return sum
  }

  /// Children without an agent wrote their process numbers into the family page. It is the target's own word, and only its own
  /// group pays for a wrong one.
  private func measureYoung(of target: Target, besides targets: [Target]) -> Int {
    let page = target.familyPage
    let next = Int(vswap_load(vswap_family_next(page)))
    var sum = 0
    for place in max(0, next - 64)..<next {
      let processID = Int32(bitPattern: vswap_family_child(page, UInt32(place % 64)))
      guard processID > 0, !targets.contains(where: { $0.processID == processID }) else { continue }
      let statm = young[processID]?.statm ?? open("/proc/\(processID)/statm", O_RDONLY | O_CLOEXEC)
      guard statm >= 0 else { continue }
      young[processID] = (statm, target.id)
      sum += max(0, Int(vs_resident_pages(statm)))
    }
    return sum
  }

  private func forgetYoung() {
    for (processID, child) in young where vs_resident_pages(child.statm) < 0 {
      close(child.statm)
      young[processID] = nil
    }
  }

  /// Pages that parent and children still share count once: what statm counts too often, from Pss_Anon, a few times a second.
  private func shared(_ targets: [Target], _ memory: inout Memory) -> Int {
    guard targets.contains(where: { $0.isForked || $0.youngChildren > 0 }) else {
      memory.sharedPages = 0
      return 0
    }
    let now = vs_monotonic_ns()
    guard now - memory.sharedMeasuredAt > 200_000_000 else { return memory.sharedPages }
    var processes = targets.map { (id: $0.processID, statm: $0.statm) }
    for (processID, child) in young
    where targets.contains(where: { $0.id == child.parent }) && !targets.contains(where: { $0.processID == processID }) {
      processes.append((id: processID, statm: child.statm))
    }
    var surplus = 0
    for process in processes {
      guard let fair = ProportionalSize.anonymousPages(of: process.id) else { continue }
      surplus += max(0, Int(vs_resident_pages(process.statm)) - fair)
    }
    memory.sharedMeasuredAt = vs_monotonic_ns()
    memory.sharedPages = surplus
    return surplus
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
    let isStuck = isUnreclaimable(targets, &memory, now) || account.isOverQuota
    if isStuck && isOverLow { memory.unreclaimableUntil = now + 200_000_000 }
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
