import CUserfault
import Glibc
import VSwapAPI

/// What the control API can ask for.
extension Daemon: ControlPlane {
  func status() -> DaemonStatus {
    let now = layer.statistics()
    let present = registry.snapshot() + registry.groupsWithoutTargets().map { ($0, []) }
    let ended = registry.endedGroups()
    let keys = Set(present.map(\.group.key) + ended.map(\.key))
    let name = { [names] (key: GroupKey) in names.text(for: key, among: keys) }
    defer { _ = vs_eventfd_signal(changed) }
    return DaemonStatus(
      pid: getpid(), uptimeSeconds: Double(vs_monotonic_ns() - startedAt) / 1e9, pool: poolStatus(now),
      cache: PageCount(pages: now.cachedPages), zero: PageCount(pages: now.zeroPages),
      metadataBytes: now.metadataBytes + chunks.metadataBytes, areas: areas.list().map(Self.areaStatus),
      groups: present.map { groupStatus($0, called: name($0.group.key)) },
      endedGroups: ended.map { endedStatus($0, called: name($0.key)) })
  }

  private func poolStatus(_ now: SlotStatistics) -> PoolStatus {
    PoolStatus(
      objects: now.objects, originalBytes: now.originalBytes, compressedBytes: now.compressedBytes,
      arenaBytes: now.arenaBytes, limitBytes: now.poolLimitBytes, state: budget.isStuck ? .full : .ok,
      storedOriginalBytes: now.storedPages * pageSize, storedCompressedBytes: now.storedBytes,
      cleanCopies: now.copies, reusedCopies: now.reusedCopies)
  }

  private func groupStatus(_ entry: (group: Group, targets: [Target]), called name: String) -> GroupStatus {
    let account = entry.group.account
    return GroupStatus(
      id: name, user: entry.group.key.user, limitBytes: Self.limitBytes(account.currentLimit, account.autoPages),
      limitMode: Self.mode(account.currentLimit), residentBytes: account.resident * pageSize,
      swappedPages: account.swapped, state: state(of: account),
      targets: entry.targets.map { targetStatus($0) }, notHeld: notHeld(entry.group),
      totals: totals(TargetRegistry.totals(of: entry.group)),
      dictionary: entry.targets.first.flatMap { layer.dictionaries.figures(ofTarget: $0.id) }.map(Self.dictionaryStatus))
  }

  private func notHeld(_ group: Group) -> [ProcessNotHeld] {
    registry.remaining(of: group).map {
      ProcessNotHeld(pid: $0.processID, name: $0.name, reason: $0.isDetached ? .detached : .executed)
    }
  }

  private static func dictionaryStatus(_ figures: Dictionaries.Figures) -> DictionaryStatus {
    DictionaryStatus(bytes: figures.bytes, savesPercent: (figures.savesPercent * 10).rounded() / 10)
  }

  private static func limitBytes(_ limit: GroupLimit, _ autoPages: Int) -> Int {
    (limit.isAuto ? autoPages : limit.fixedPages ?? 0) * pageSize
  }

  private static func mode(_ limit: GroupLimit) -> LimitMode {
    switch limit {
    case .none: .none
    case .fixed: .fixed
    case .auto: .auto
    }
  }

  private func state(of account: GroupAccount) -> GroupStatus.State {
    guard let limit = account.limit, account.resident > limit else { return .ok }
    if account.isOverQuota { return .overQuota }
    if budget.isStuck { return .poolFull }
    return account.unreclaimable ? .unevictable : .overLimit
  }

  private func targetStatus(_ target: Target) -> TargetStatus {
    let counters = target.counters
    return TargetStatus(
      pid: target.processID, name: target.name, residentBytes: counters.resident * pageSize,
      swappedPages: counters.swapped, evictions: counters.evictions, faults: counters.faults,
      refaults: counters.refaults, zeroFills: counters.zeroFills, state: state(of: counters))
  }

  private func state(of counters: TargetCounters) -> String {
    let asked = counters.askedSince
    if asked > 0, vs_monotonic_ns() > asked + Self.silence { return "silent" }
    return counters.wanted > 0 ? "evicting" : "ok"
  }

  /// Nanoseconds after which an agent does not answer. It takes some milliseconds for a command, also on a busy machine.
  private static let silence: UInt64 = 2_000_000_000

  private func endedStatus(_ ended: TargetRegistry.Ended, called name: String) -> GroupStatus {
    GroupStatus(
      id: name, user: ended.key.user, limitBytes: Self.limitBytes(ended.limit, ended.autoPages),
      limitMode: Self.mode(ended.limit), residentBytes: 0, swappedPages: 0, state: .ok,
      targets: [], notHeld: [], totals: totals(ended.totals), dictionary: ended.dictionary.map(Self.dictionaryStatus))
  }

  private func totals(_ totals: TargetRegistry.Totals) -> GroupTotals {
    GroupTotals(
      evictions: totals.evictions, faults: totals.faults, refaults: totals.refaults, zeroFills: totals.zeroFills,
      peakResidentBytes: totals.peakResident * pageSize, peakSwappedPages: totals.peakSwapped, targets: totals.targets)
  }

  // MARK: - Commands

  func evict(_ selector: TargetSelector, bytes: Int?) throws(ControlError) -> EvictReply {
    let targets = try find(selector)
    var asked: [(pager: Pager, promise: Promise<Pager.EvictResult>)] = []
    let share = bytes.map { max(pageSize, $0 / targets.count) }
    for target in targets {
      let promise = Promise<Pager.EvictResult>()
      if let pager = target.pager, pager.post(.evict(bytes: share, promise)) { asked.append((pager, promise)) }
    }
    var pages = 0
    for (pager, promise) in asked {
      guard let result = pager.answer(promise, within: Self.patience) else { throw Self.slow }
      if result.isStuck { throw Self.stuck(pager.target.processID) }
      pages += result.pages
    }
    return EvictReply(evictedPages: pages, evictedBytes: pages * pageSize)
  }

  func restore(_ selector: TargetSelector) throws(ControlError) -> RestoreReply {
    let targets = try find(selector)
    let account = targets[0].group.account
    let wanted = targets.reduce(0) { $0 + $1.counters.swapped }
    if let limit = account.limit, account.resident + wanted > limit {
      let over = ByteSize.format((account.resident + wanted - limit) * pageSize)
      let group = targets[0].group.key.name
      throw ControlError(
        .notPossible, "the pages would exceed the group's limit by \(over); raise it first: vswapctl limit \(group) none")
    }
    var pages = 0
    for target in targets { pages += try bringBack(target) { .restore($0) } }
    return RestoreReply(restoredPages: pages, restoredBytes: pages * pageSize)
  }

  func setLimit(group id: String, limit: MemoryLimit) throws(ControlError) {
    let group = try findGroup(id).group
    switch limit {
    case .none: group.account.setLimit(.none)
    case .fixed(let bytes): group.account.setLimit(.fixed(bytes: bytes))
    case .auto: group.account.setLimit(.auto)
    }
    keeper.nudge()
  }

  func setPoolLimit(bytes: Int) {
    layer.setPoolLimit(bytes: min(bytes, Self.poolReserve))
    poolLimitChanged()
  }

  func detach(pid: Int32) throws(ControlError) -> RestoreReply {
    guard let target = registry.target(processID: pid) else { throw Self.unknown(pid) }
    let pages = try bringBack(target) { .detach($0) }
    return RestoreReply(restoredPages: pages, restoredBytes: pages * pageSize)
  }

  private func bringBack(
    _ target: Target, _ request: (Promise<Pager.RestoreResult>) -> Pager.Request
  ) throws(ControlError) -> Int {
    let promise = Promise<Pager.RestoreResult>()
    guard let pager = target.pager, pager.post(request(promise)) else { throw Self.unknown(target.processID) }
    guard let result = pager.answer(promise, within: Self.patience) else { throw Self.slow }
    switch result {
    case .restored(let pages): return pages
    case .gone: throw Self.unknown(target.processID)
    case .stuck: throw Self.stuck(target.processID)
    }
  }

  private func find(_ selector: TargetSelector) throws(ControlError) -> [Target] {
    switch selector {
    case .pid(let pid):
      guard let target = registry.target(processID: pid) else { throw Self.unknown(pid) }
      return [target]
    case .group(let id):
      let found = try findGroup(id)
      guard !found.targets.isEmpty else { throw ControlError(.notFound, "no process of group \(id) is attached") }
      return found.targets
    }
  }

  private func findGroup(_ text: String) throws(ControlError) -> (group: Group, targets: [Target]) {
    // As it was chosen, or as it is shown.
    let chosen = registry.groups(called: text, by: names)
    let found = chosen.isEmpty ? registry.groups(called: EscapedText.ascii(text.utf8), by: names) : chosen
    guard let first = found.first else { throw ControlError(.notFound, "there is no group \(text)") }
    guard found.count == 1 else {
      let keys = Set(found.map(\.group.key))
      let texts = found.map { names.text(for: $0.group.key, among: keys) }.joined(separator: ", ")
      throw ControlError(.notPossible, "there are several groups \(text); name one of these: \(texts)")
    }
    return first
  }

  private static let patience = 120_000
  private static let slow = ControlError(.timeout, "it takes longer than two minutes and goes on")
  private static func stuck(_ pid: Int32) -> ControlError {
    ControlError(.timeout, "process \(pid) does not answer; is it stopped? Continue it and try again")
  }
  private static func unknown(_ pid: Int32) -> ControlError {
    ControlError(.notFound, "process \(pid) is not attached")
  }
}
