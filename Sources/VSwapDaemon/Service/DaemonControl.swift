import CUserfault
import Glibc
import VSwapAPI

/// What the control API can ask for.
extension Daemon: ControlPlane {
  func status() -> DaemonStatus {
    let now = layer.statistics()
    defer { _ = vs_eventfd_signal(changed) }
    return DaemonStatus(
      pid: getpid(), uptimeSeconds: Double(vs_monotonic_ns() - startedAt) / 1e9, pool: poolStatus(now),
      cache: PageCount(pages: now.cachedPages), zero: PageCount(pages: now.zeroPages),
      metadataBytes: now.metadataBytes + chunks.metadataBytes, areas: areas.list().map(Self.areaStatus),
      groups: registry.snapshot().map(groupStatus),
      endedGroups: registry.endedGroups().map(endedStatus))
  }

  private func poolStatus(_ now: SlotStatistics) -> PoolStatus {
    PoolStatus(
      objects: now.objects, originalBytes: now.originalBytes, compressedBytes: now.compressedBytes,
      arenaBytes: now.arenaBytes, limitBytes: now.poolLimitBytes, state: budget.isStuck ? .full : .ok,
      storedOriginalBytes: now.storedPages * pageSize, storedCompressedBytes: now.storedBytes,
      cleanCopies: now.copies, reusedCopies: now.reusedCopies)
  }

  private func groupStatus(_ entry: (group: Group, targets: [Target])) -> GroupStatus {
    let account = entry.group.account
    return GroupStatus(
      id: entry.group.id, limitBytes: Self.limitBytes(account.currentLimit, account.autoPages),
      limitMode: Self.mode(account.currentLimit), residentBytes: account.resident * pageSize,
      swappedPages: account.swapped, state: state(of: account),
      targets: entry.targets.map { targetStatus($0) }, totals: totals(TargetRegistry.totals(of: entry.group)),
      dictionary: entry.targets.first.flatMap { layer.dictionaries.figures(ofTarget: $0.id) }.map(Self.dictionaryStatus))
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
    if budget.isStuck { return .poolFull }
    return account.unreclaimable ? .unevictable : .overLimit
  }

  private func targetStatus(_ target: Target) -> TargetStatus {
    let counters = target.counters
    return TargetStatus(
      pid: target.processID, name: target.name, residentBytes: counters.resident * pageSize,
      swappedPages: counters.swapped, evictions: counters.evictions, faults: counters.faults,
      refaults: counters.refaults, zeroFills: counters.zeroFills, state: counters.wanted > 0 ? "evicting" : "ok")
  }

  private func endedStatus(_ ended: TargetRegistry.Ended) -> GroupStatus {
    GroupStatus(
      id: ended.id, limitBytes: Self.limitBytes(ended.limit, ended.autoPages), limitMode: Self.mode(ended.limit),
      residentBytes: 0, swappedPages: 0, state: .ok,
      targets: [], totals: totals(ended.totals), dictionary: ended.dictionary.map(Self.dictionaryStatus))
  }

  private func totals(_ totals: TargetRegistry.Totals) -> GroupTotals {
    GroupTotals(
      evictions: totals.evictions, faults: totals.faults, refaults: totals.refaults, zeroFills: totals.zeroFills,
      peakResidentBytes: totals.peakResident * pageSize, peakSwappedPages: totals.peakSwapped, targets: totals.targets)
  }

  // MARK: - Commands

  func evict(_ selector: TargetSelector, bytes: Int?) throws(ControlError) -> EvictReply {
    let targets = try find(selector)
    var promises: [Promise<Pager.EvictResult>] = []
    let share = bytes.map { max(pageSize, $0 / targets.count) }
    for target in targets {
      let promise = Promise<Pager.EvictResult>()
      if target.pager?.post(.evict(bytes: share, promise)) == true { promises.append(promise) }
    }
    var pages = 0
    for promise in promises {
      guard let result = promise.wait(milliseconds: Self.patience) else { throw Self.slow }
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
      let group = targets[0].group.id
      throw ControlError(
        .notPossible, "the pages would exceed the group's limit by \(over); raise it first: vswapctl limit \(group) none")
    }
    var pages = 0
    for target in targets { pages += try bringBack(target) { .restore($0) } }
    return RestoreReply(restoredPages: pages, restoredBytes: pages * pageSize)
  }

  /// The group of that name, as it was chosen or as it is shown.
  private func group(named id: String) -> (group: Group, targets: [Target])? {
    registry.group(named: id) ?? registry.group(named: EscapedText.ascii(id.utf8))
  }

  func setLimit(group id: String, limit: MemoryLimit) throws(ControlError) {
    guard let found = group(named: id) else { throw ControlError(.notFound, "there is no group \(id)") }
    switch limit {
    case .none: found.group.account.setLimit(.none)
    case .fixed(let bytes): found.group.account.setLimit(.fixed(pages: max(1, bytes / pageSize)))
    case .auto: found.group.account.setLimit(.auto)
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
    guard target.pager?.post(request(promise)) == true else { throw Self.unknown(target.processID) }
    guard let result = promise.wait(milliseconds: Self.patience) else { throw Self.slow }
    switch result {
    case .restored(let pages): return pages
    case .gone: throw Self.unknown(target.processID)
    case .stuck:
      throw ControlError(.timeout, "process \(target.processID) does not answer; is it stopped? Continue it and try again")
    }
  }

  private func find(_ selector: TargetSelector) throws(ControlError) -> [Target] {
    switch selector {
    case .pid(let pid):
      guard let target = registry.target(processID: pid) else { throw Self.unknown(pid) }
      return [target]
    case .group(let id):
      guard let found = group(named: id), !found.targets.isEmpty else {
        throw ControlError(.notFound, "there is no group \(id)")
      }
      return found.targets
    }
  }

  private static let patience = 120_000
  private static let slow = ControlError(.timeout, "it takes longer than two minutes and goes on")
  private static func unknown(_ pid: Int32) -> ControlError {
    ControlError(.notFound, "process \(pid) is not attached")
  }
}
