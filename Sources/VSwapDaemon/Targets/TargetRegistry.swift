import CUserfault
import Glibc
import Synchronization

/// Who is there: groups, targets, children without an agent. One lock over all of it, held for look-ups and changes only,
/// never while a pager is waited for.
final class TargetRegistry: Pager.Family, @unchecked Sendable {
  private let lock = Lock.create()
  /// As long as they have an address space, though it be a young child's or one that is not served yet, or a process that had one and executed something
  /// else: who comes meanwhile joins it. What was set for a group, and what it has done, lasts as long as the group.
  private var groups: [String: Group] = [:]
  private var ended: [Ended] = []
  private var youngPagers: [UInt64: Pager] = [:]
  /// Counts changes of what `snapshot` returns, processes of children included.
  private let changes = Atomic<Int>(0)
  /// Children between two pagers.
  private var handingOver = 0
  private var freeIdentifiers: [UInt32] = []
  private var nextIdentifier: UInt32 = 1
  /// An epoll descriptor, readable when a process of `Group.remaining` has ended; or an error: then there are none.
  let endedProcesses = vs_epoll()
  private let dictionaries: Dictionaries
  private let whenChanged: @Sendable () -> Void
  private let whenJoined: @Sendable () -> Void
  private let log: @Sendable (String) -> Void

  /// The owner word of a slot has 13 bits for the target.
  static let maximumTargets: UInt32 = 8191
  private static let keptEnded = 16

  /// A group whose last target has gone, with its totals.
  struct Ended: Sendable {
    let id: String
    let limit: GroupLimit
    /// Where an automatic limit was in the end.
    let autoPages: Int
    let totals: Totals
    let dictionary: Dictionaries.Figures?
  }

  struct Totals: Sendable {
    var evictions = 0
    var faults = 0
    var refaults = 0
    var zeroFills = 0
    var peakResident = 0
    var peakSwapped = 0
    var targets = 0
  }

  /// `whenJoined` is called after a target came, `whenChanged` after one came or went, `log` with a line for the operator; all on any thread.
  init(
    dictionaries: Dictionaries, whenJoined: @escaping @Sendable () -> Void = {}, whenChanged: @escaping @Sendable () -> Void,
    log: @escaping @Sendable (String) -> Void
  ) {
    self.dictionaries = dictionaries
    self.whenJoined = whenJoined
    self.whenChanged = whenChanged
    self.log = log
  }

  // MARK: - Joining

  /// A number for a new target, and its group: the one of that name, made where there is none. The first one that names a limit sets it.
  /// nil: all numbers are in use.
  func enter(groupNamed id: String, limit: GroupLimit) -> (group: Group, id: UInt32, token: UInt64)? {
    lock.lock()
    defer { lock.unlock() }
    let group = groups[id] ?? Group(id: id, limit: limit)
    guard let number = takeIdentifier(in: group) else { return nil }
    groups[id] = group
    return (group, number, UInt64.random(in: 1...UInt64.max))
  }

  deinit { if endedProcesses >= 0 { close(endedProcesses) } }

  func join(_ target: Target, servedBy pager: Pager) {
    target.pager = pager
    lock.lock()
    let group = target.group
    // It had no target for a while, and has not ended after all.
    if group.targets.isEmpty, group.remaining.isEmpty, group.everyTarget > 0,
      let place = ended.lastIndex(where: { $0.id == group.id })
    {
      ended.remove(at: place)
    }
    forget(processID: target.processID, of: group)
    group.targets.append(target)
    group.everyTarget += 1
    changes.wrappingAdd(1, ordering: .releasing)
    if target.isForked { handingOver -= 1 }
    lock.unlock()
    whenJoined()
    whenChanged()
  }

  func identifiersForChild(in group: Group) -> (id: UInt32, token: UInt64)? {
    lock.lock()
    defer { lock.unlock() }
    guard let id = takeIdentifier(in: group) else { return nil }
    return (id, UInt64.random(in: 1...UInt64.max))
  }

  /// Under the lock. The group's own come first.
  private func takeIdentifier(in group: Group) -> UInt32? {
    let id: UInt32
    if let free = group.idleIdentifiers.popLast() ?? freeIdentifiers.popLast() {
      id = free
    } else {
      guard nextIdentifier <= Self.maximumTargets else { return nil }
      id = nextIdentifier
      nextIdentifier += 1
    }
    group.addressSpaces += 1
    if group.domain == 0 { group.domain = id }
    dictionaries.join(target: id, domain: group.domain)
    return id
  }

  func freeIdentifier(_ id: UInt32, of group: Group) {
    lock.lock()
    group.idleIdentifiers.append(id)
    group.addressSpaces -= 1
    guard group.addressSpaces == 0 else { return lock.unlock() }
    forgetIfGone(group)
    let (domain, identifiers) = (group.domain, group.idleIdentifiers)
    (group.domain, group.idleIdentifiers) = (0, [])
    lock.unlock()
    dictionaries.end(domain: domain, targets: identifiers)
    lock.lock()
    freeIdentifiers += identifiers
    lock.unlock()
  }

  /// Under the lock.
  private func forgetIfGone(_ group: Group) {
    if group.addressSpaces == 0 && group.remaining.isEmpty && groups[group.id] === group { groups[group.id] = nil }
  }

  func childAppeared(token: UInt64, servedBy pager: Pager) {
    lock.lock()
    youngPagers[token] = pager
    pager.target.youngChildren += 1
    lock.unlock()
  }

  func childIdentified(_ child: YoungProcess, of pager: Pager) {
    lock.lock()
    pager.target.children.append(child)
    changes.wrappingAdd(1, ordering: .releasing)
    lock.unlock()
  }

  func childDisappeared(token: UInt64, freeing id: UInt32?, of pager: Pager) {
    lock.lock()
    if let place = pager.target.children.firstIndex(where: { $0.token == token }) {
      pager.target.children.remove(at: place)
      changes.wrappingAdd(1, ordering: .releasing)
    }
    youngPagers[token] = nil
    pager.target.youngChildren -= 1
    if id == nil { handingOver += 1 }
    lock.unlock()
    if let id { freeIdentifier(id, of: pager.target.group) }
    whenChanged()
  }

  func pager(ofChild token: UInt64) -> Pager? {
    lock.lock()
    defer { lock.unlock() }
    return youngPagers[token]
  }

  // MARK: - Leaving

  func targetEnded(_ target: Target, becauseOf violation: String?, isDetached: Bool) {
    if let violation { log("ended the session of \(target.name) (\(target.processID)): \(violation)") }
    let dictionary = dictionaries.figures(ofTarget: target.id)
    lock.lock()
    let group = target.group
    group.targets.removeAll { $0 === target }
    changes.wrappingAdd(1, ordering: .releasing)
    group.dictionary = dictionary
    keep(target, isDetached: isDetached)
    // Nobody measures it any more.
    if group.targets.isEmpty { group.account.measured(residentPages: 0) }
    noteEnd(of: group)
    lock.unlock()
    freeIdentifier(target.id, of: group)
    whenChanged()
  }

  /// Under the lock: remembers the process of a target that has ended, if that lives on.
  private func keep(_ target: Target, isDetached: Bool) {
    var ended = pollfd(fd: target.process, events: Int16(POLLIN), revents: 0)
    // What it executed may have attached before its end was noticed.
    let isTarget = groups.values.contains { $0.targets.contains { $0.processID == target.processID } }
    guard !isTarget, target.process >= 0, endedProcesses >= 0, poll(&ended, 1, 0) == 0 else { return }
    let process = fcntl(target.process, F_DUPFD_CLOEXEC, 0)
    guard process >= 0 else { return }
    guard vs_epoll_add(endedProcesses, process) == 0 else {
      close(process)
      return
    }
    target.group.remaining.append(
      Group.Remaining(processID: target.processID, name: target.name, process: process, isDetached: isDetached))
  }

  /// Under the lock: the process is a target again.
  private func forget(processID: Int32, of group: Group) {
    for process in group.remaining where process.processID == processID { forget(process) }
    group.remaining.removeAll { $0.processID == processID }
  }

  private func forget(_ process: Group.Remaining) {
    // Not by closing it alone: a descriptor that a thread has just duplicated keeps its place in the list.
    vs_epoll_remove(endedProcesses, process.process)
    close(process.process)
  }

  /// Under the lock: keeps the totals of a group whose last process has gone.
  private func noteEnd(of group: Group) {
    guard group.targets.isEmpty && group.remaining.isEmpty else { return }
    let account = group.account
    ended.append(
      Ended(
        id: group.id, limit: account.currentLimit, autoPages: account.autoPages, totals: Self.totals(of: group),
        dictionary: group.dictionary))
    if ended.count > Self.keptEnded { ended.removeFirst() }
  }

  /// Processes ended that had been targets: `endedProcesses` is readable.
  func removeEndedProcesses() {
    lock.lock()
    var isAny = false
    while case let descriptor = vs_epoll_next(endedProcesses), descriptor >= 0 {
      guard let group = groups.values.first(where: { $0.remaining.contains { $0.process == descriptor } }) else { break }
      for process in group.remaining where process.process == descriptor { forget(process) }
      group.remaining.removeAll { $0.process == descriptor }
      noteEnd(of: group)
      forgetIfGone(group)
      isAny = true
    }
    lock.unlock()
    if isAny { whenChanged() }
  }

  // MARK: - Looking

  /// Another one when `snapshot` may return something else.
  var changeCount: Int { changes.load(ordering: .acquiring) }

  /// Known processes of children without agents.
  func children(of target: Target) -> [YoungProcess] {
    lock.lock()
    defer { lock.unlock() }
    return target.children
  }

  /// Groups that have targets, in the order of their names.
  func snapshot() -> [(group: Group, targets: [Target])] {
    lock.lock()
    defer { lock.unlock() }
    return groups.values.filter { !$0.targets.isEmpty }.sorted { $0.id < $1.id }.map { ($0, $0.targets) }
  }

  /// Groups without targets whose processes live on.
  func groupsWithoutTargets() -> [Group] {
    lock.lock()
    defer { lock.unlock() }
    return groups.values.filter { $0.targets.isEmpty && !$0.remaining.isEmpty }.sorted { $0.id < $1.id }
  }

  func remaining(of group: Group) -> [Group.Remaining] {
    lock.lock()
    defer { lock.unlock() }
    return group.remaining
  }

  /// Whether it has targets or not.
  func anyGroup(named id: String) -> Group? {
    lock.lock()
    defer { lock.unlock() }
    return groups[id]
  }

  func endedGroups() -> [Ended] {
    lock.lock()
    defer { lock.unlock() }
    return ended
  }

  func target(processID: Int32) -> Target? {
    lock.lock()
    defer { lock.unlock() }
    for group in groups.values {
      if let target = group.targets.first(where: { $0.processID == processID }) { return target }
    }
    return nil
  }

  /// By the number in slots' owner words.
  func target(id: UInt32) -> Target? {
    lock.lock()
    defer { lock.unlock() }
    for group in groups.values {
      if let target = group.targets.first(where: { $0.id == id }) { return target }
    }
    return nil
  }

  func group(named id: String) -> (group: Group, targets: [Target])? {
    lock.lock()
    defer { lock.unlock() }
    guard let group = groups[id], !group.targets.isEmpty else { return nil }
    return (group, group.targets)
  }

  /// Pagers of targets, and those that only have children left.
  func pagers() -> [Pager] {
    lock.lock()
    defer { lock.unlock() }
    var result: [ObjectIdentifier: Pager] = [:]
    for group in groups.values {
      for target in group.targets { if let pager = target.pager { result[ObjectIdentifier(pager)] = pager } }
    }
    for pager in youngPagers.values { result[ObjectIdentifier(pager)] = pager }
    return Array(result.values)
  }

  /// Targets and children without an agent.
  var population: Int {
    lock.lock()
    defer { lock.unlock() }
    return groups.values.reduce(youngPagers.count + handingOver) { $0 + $1.targets.count }
  }

  static func totals(of group: Group) -> Totals {
    let account = group.account
    return Totals(
      evictions: account.evictions, faults: account.faults, refaults: account.refaults, zeroFills: account.zeroFills,
      peakResident: account.peakResident, peakSwapped: account.peakSwapped, targets: group.everyTarget)
  }
}
