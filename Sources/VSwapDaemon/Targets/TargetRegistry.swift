import CUserfault
import Glibc
import Synchronization

/// Who is there: groups, targets, children without an agent. One lock over all of it, held for look-ups and changes only,
/// never while a pager is waited for.
final class TargetRegistry: Pager.Family, @unchecked Sendable {
  private let lock = Lock.create()
  /// As long as they have an address space, though it be a young child's or one that is not served yet, or a process that had one and executed something
  /// else: who comes meanwhile joins it. What was set for a group, and what it has done, lasts as long as the group.
  private var groups: [GroupKey: Group] = [:]
  /// Of the groups that are there, and of the last ones that have gone: a program that executes another one may be the only one of its group, which
  /// ends and begins again then.
  private var passes: [UInt64: GroupKey] = [:]
  /// Groups that have gone and whose pass is kept, the oldest first.
  private var passesOfGone: [GroupKey: UInt64] = [:]
  private var gone: [GroupKey] = []
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
  /// Address spaces of users that the quota binds.
  private var addressSpaces: [UInt32: Int] = [:]
  private let quota: UserQuota
  private let dictionaries: Dictionaries
  private let whenChanged: @Sendable () -> Void
  private let whenJoined: @Sendable () -> Void
  private let log: @Sendable (String) -> Void

  /// The owner word of a slot has 13 bits for the target.
  static let maximumTargets: UInt32 = 8191
  /// Of those, the ones that only children of targets get: a fork cannot be refused.
  static let keptForChildren = 1024
  private static let keptEnded = 16
  private static let keptPasses = 1024

  /// A group whose last target has gone, with its totals.
  struct Ended: Sendable {
    let key: GroupKey
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
    dictionaries: Dictionaries, quota: UserQuota = UserQuota(), whenJoined: @escaping @Sendable () -> Void = {},
    whenChanged: @escaping @Sendable () -> Void, log: @escaping @Sendable (String) -> Void
  ) {
    self.dictionaries = dictionaries
    self.quota = quota
    self.whenJoined = whenJoined
    self.whenChanged = whenChanged
    self.log = log
  }

  // MARK: - Joining

  /// A number for a new target, and its group: the one that `pass` is for, if it has that name; else the one of that key, made where there is
  /// none. The first one that names a limit sets it. nil: all numbers are in use, or the group's user has too many.
  func enter(_ wanted: GroupKey, pass: UInt64 = 0, limit: GroupLimit) -> (group: Group, id: UInt32, token: UInt64)? {
    lock.lock()
    defer { lock.unlock() }
    let key = keyOf(pass: pass, name: wanted.name) ?? wanted
    let group = groups[key] ?? Group(key: key, pass: passesOfGone[key] ?? UInt64.random(in: 1...UInt64.max), limit: limit)
    let left = group.idleIdentifiers.count + freeIdentifiers.count + Int(Self.maximumTargets + 1 - nextIdentifier)
    guard left > Self.keptForChildren else { return nil }
    guard let number = takeIdentifier(in: group, atMost: quota.processes) else { return nil }
    if groups.updateValue(group, forKey: key) == nil { begin(group) }
    return (group, number, UInt64.random(in: 1...UInt64.max))
  }

  deinit { if endedProcesses >= 0 { close(endedProcesses) } }

  /// Why there is no number for a new target of that user.
  func refusal(of user: UInt32) -> String {
    lock.lock()
    defer { lock.unlock() }
    guard quota.binds(user), addressSpaces[user, default: 0] >= quota.processes else {
      return "the daemon serves as many address spaces as it can, but for children of those"
    }
    return "user \(user) has \(quota.processes) processes here already, as many as one may; end some, or raise user_processes"
  }

  /// Whether `pass` is for a group of that name, which is there or was lately.
  func isPass(_ pass: UInt64, forGroupNamed name: String) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    return keyOf(pass: pass, name: name) != nil
  }

  /// Under the lock. A pass is no good for another name: who names another group means that.
  private func keyOf(pass: UInt64, name: String) -> GroupKey? {
    passes[pass].flatMap { $0.name == name ? $0 : nil }
  }

  /// Under the lock.
  private func begin(_ group: Group) {
    passes[group.pass] = group.key
    guard passesOfGone.removeValue(forKey: group.key) != nil else { return }
    gone.removeAll { $0 == group.key }
  }

  /// Under the lock.
  private func end(_ group: Group) {
    groups[group.key] = nil
    passesOfGone[group.key] = group.pass
    gone.append(group.key)
    guard gone.count > Self.keptPasses, let pass = passesOfGone.removeValue(forKey: gone.removeFirst()) else { return }
    passes[pass] = nil
  }

  func join(_ target: Target, servedBy pager: Pager) {
    target.pager = pager
    lock.lock()
    let group = target.group
    // It had no target for a while, and has not ended after all.
    if group.targets.isEmpty, group.remaining.isEmpty, group.everyTarget > 0,
      let place = ended.lastIndex(where: { $0.key == group.key })
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
    guard let id = takeIdentifier(in: group, atMost: quota.addressSpaces) else { return nil }
    return (id, UInt64.random(in: 1...UInt64.max))
  }

  /// Under the lock. The group's own come first. A user that the quota binds has `most` at most.
  private func takeIdentifier(in group: Group, atMost most: Int) -> UInt32? {
    let id: UInt32
    let isBound = quota.binds(group.key.user)
    guard !isBound || addressSpaces[group.key.user, default: 0] < most else { return nil }
    if let free = group.idleIdentifiers.popLast() ?? freeIdentifiers.popLast() {
      id = free
    } else {
      guard nextIdentifier <= Self.maximumTargets else { return nil }
      id = nextIdentifier
      nextIdentifier += 1
    }
    group.addressSpaces += 1
    if isBound { addressSpaces[group.key.user, default: 0] += 1 }
    if group.domain == 0 { group.domain = id }
    dictionaries.join(target: id, domain: group.domain)
    return id
  }

  func freeIdentifier(_ id: UInt32, of group: Group) {
    lock.lock()
    group.idleIdentifiers.append(id)
    group.addressSpaces -= 1
    if quota.binds(group.key.user), let left = addressSpaces[group.key.user] {
      addressSpaces[group.key.user] = left > 1 ? left - 1 : nil
    }
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
    if group.addressSpaces == 0 && group.remaining.isEmpty && groups[group.key] === group { end(group) }
  }

  func childAppeared(token: UInt64, servedBy pager: Pager) {
    lock.lock()
    youngPagers[token] = pager
    pager.target.youngChildren += 1
    lock.unlock()
  }

  func childCameBack(token: UInt64, to pager: Pager) {
    lock.lock()
    youngPagers[token] = pager
    pager.target.youngChildren += 1
    handingOver -= 1
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
        key: group.key, limit: account.currentLimit, autoPages: account.autoPages, totals: Self.totals(of: group),
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
    return groups.values.filter { !$0.targets.isEmpty }.sorted { $0.key.order < $1.key.order }.map { ($0, $0.targets) }
  }

  /// Groups without targets whose processes live on.
  func groupsWithoutTargets() -> [Group] {
    lock.lock()
    defer { lock.unlock() }
    return groups.values.filter { $0.targets.isEmpty && !$0.remaining.isEmpty }.sorted { $0.key.order < $1.key.order }
  }

  func remaining(of group: Group) -> [Group.Remaining] {
    lock.lock()
    defer { lock.unlock() }
    return group.remaining
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

  /// Groups that `text` means, whether they have targets or not. More than one: it does not say enough.
  func groups(called text: String, by names: GroupNames) -> [(group: Group, targets: [Target])] {
    lock.lock()
    defer { lock.unlock() }
    let keys = names.find(text, among: groups.values.map(\.key)).sorted { $0.order < $1.order }
    return keys.compactMap { groups[$0] }.map { ($0, $0.targets) }
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
