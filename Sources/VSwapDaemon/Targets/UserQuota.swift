/// Most that the programs of one user may have of what all share. Root and the daemon's own user are not bound.
struct UserQuota: Sendable {
  /// Processes that attach, and with the forked children that have not: of the 8191 that there can be.
  var processes = 1024
  var addressSpaces: Int { 2 * processes }
  /// Chunks of page tables: a quarter of the arena.
  var chunks = Int.max
  /// Pages that are swapped out. nil: three quarters of what pool and swap areas could hold if nothing could be compressed.
  var swappedPages: Int?
  /// The daemon's own user.
  var user: UInt32 = 0

  func binds(_ user: UInt32) -> Bool { user != 0 && user != self.user }
}

/// Compares what users have with their quota. Of the keeper's thread.
struct QuotaWatch {
  private struct Sum {
    var swapped = 0
    var chunks = 0
  }

  let quota: UserQuota
  /// Pages that pool and swap areas could hold.
  let capacity: @Sendable () -> Int
  private var lastLook: UInt64 = 0
  /// So that looking costs nothing beside what the keeper does anyway, in nanoseconds.
  private static let interval: UInt64 = 50_000_000

  init(quota: UserQuota, capacity: @escaping @Sendable () -> Int) {
    self.quota = quota
    self.capacity = capacity
  }

  /// Has eviction stand still for the groups of users who have too much, and go on for those who no longer have.
  mutating func look(at groups: [(group: Group, targets: [Target])], now: UInt64) {
    guard now - lastLook >= Self.interval, groups.contains(where: { quota.binds($0.group.key.user) }) else { return }
    lastLook = now
    let most = quota.swappedPages ?? capacity() / 4 * 3
    var sums: [UInt32: Sum] = [:]
    for (group, targets) in groups where quota.binds(group.key.user) {
      sums[group.key.user, default: Sum()].swapped += group.account.swapped
      sums[group.key.user, default: Sum()].chunks += targets.reduce(0) { $0 + $1.counters.chunks }
    }
    for (group, _) in groups {
      guard let sum = sums[group.key.user] else { continue }
      group.account.isOverQuota = sum.swapped >= most || sum.chunks >= quota.chunks
    }
  }
}
