import CUserfault
import Glibc

/// Who is there: groups, targets, children without an agent. One lock over all of it, held for look-ups and changes only,
/// never while a pager is waited for.
final class TargetRegistry: Pager.Family, @unchecked Sendable {
  private let lock = Lock.create()
  /// As long as they have an address space, though it be a young child's or one that is not served yet: who comes meanwhile joins it, or there would
  /// be two of a name.
  private var groups: [String: Group] = [:]
  private var ended: [Ended] = []
  private var youngPagers: [UInt64: Pager] = [:]
  /// Children between two pagers.
  private var handingOver = 0
  private var freeIdentifiers: [UInt32] = []
  private var nextIdentifier: UInt32 = 1
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

  func join(_ target: Target, servedBy pager: Pager) {
    target.pager = pager
    lock.lock()
    let group = target.group
    // It had no target for a while, and has not ended after all.
    if group.targets.isEmpty, group.everyTarget > 0, let place = ended.lastIndex(where: { $0.id == group.id }) {
      ended.remove(at: place)
    }
    group.targets.append(target)
    group.everyTarget += 1
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
    groups[group.id] = nil
    let (domain, identifiers) = (group.domain, group.idleIdentifiers)
    (group.domain, group.idleIdentifiers) = (0, [])
    lock.unlock()
    dictionaries.end(domain: domain, targets: identifiers)
    lock.lock()
    freeIdentifiers += identifiers
    lock.unlock()
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

  func childDisappeared(token: UInt64, freeing id: UInt32?, of pager: Pager) {
    lock.lock()
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

  func targetEnded(_ target: Target, becauseOf violation: String?) {
    if let violation { log("ended the session of \(target.name) (\(target.processID)): \(violation)") }
    let dictionary = dictionaries.figures(ofTarget: target.id)
    lock.lock()
    let group = target.group
    group.targets.removeAll { $0 === target }
    if group.targets.isEmpty {
      let account = group.account
      ended.append(
        Ended(
          id: group.id, limit: account.currentLimit, autoPages: account.autoPages, totals: Self.totals(of: group),
          dictionary: dictionary))
      if ended.count > Self.keptEnded { ended.removeFirst() }
    }
    lock.unlock()
    freeIdentifier(target.id, of: group)
    whenChanged()
  }

  // MARK: - Looking

  /// Groups that have targets, in the order of their names.
  func snapshot() -> [(group: Group, targets: [Target])] {
    lock.lock()
    defer { lock.unlock() }
    return groups.values.filter { !$0.targets.isEmpty }.sorted { $0.id < $1.id }.map { ($0, $0.targets) }
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
