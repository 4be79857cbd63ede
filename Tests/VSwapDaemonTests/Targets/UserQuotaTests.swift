import Testing

@testable import VSwapDaemon

@Suite struct UserQuotaTests {
  private func group(_ name: String, of user: UInt32, swapped: Int) -> Group {
    let group = Group(key: GroupKey(user: user, namespace: 1, name: name), pass: 1, limit: .none)
    group.account.swappedChanged(by: swapped)
    return group
  }

  private func look(_ watch: inout QuotaWatch, _ groups: [Group], at milliseconds: UInt64) -> [Bool] {
    watch.look(at: groups.map { ($0, []) }, now: milliseconds * 1_000_000)
    return groups.map(\.account.isOverQuota)
  }

  /// All groups of a user together; the others' go on.
  @Test func whatAUserHasSwappedOutIsBounded() {
    let quota = UserQuota(swappedPages: 1000, user: 7)
    var watch = QuotaWatch(quota: quota) { 0 }
    let groups = [
      group("a", of: 1000, swapped: 600), group("b", of: 1000, swapped: 400), group("a", of: 1001, swapped: 999),
      group("a", of: 0, swapped: 5000), group("a", of: 7, swapped: 5000),
    ]
    let over = look(&watch, groups, at: 1000)
    #expect(over == [true, true, false, false, false])
    groups[1].account.swappedChanged(by: -1)
    let later = look(&watch, groups, at: 2000)
    #expect(later == [false, false, false, false, false])
  }

  /// Unless it is set: pages that do not compress must leave room for others.
  @Test func theQuotaFollowsWhatThereIs() {
    let room = FixedRoom()
    var watch = QuotaWatch(quota: UserQuota()) { room.pages }
    let groups = [group("a", of: 1000, swapped: 3000)]
    let over = look(&watch, groups, at: 1000)
    room.pages = 8000
    let later = look(&watch, groups, at: 2000)
    #expect(over == [true] && later == [false])
  }

  private final class FixedRoom: @unchecked Sendable { var pages = 4000 }

  /// Nobody takes all numbers of address spaces, and who has too many processes can still fork.
  @Test func processesOfAUserAreBounded() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let quota = UserQuota(processes: 2, user: 7)
    let registry = TargetRegistry(dictionaries: dictionaries, quota: quota, whenChanged: {}, log: { _ in })
    func enter(_ user: UInt32, _ name: String) -> (group: Group, id: UInt32, token: UInt64)? {
      registry.enter(GroupKey(user: user, namespace: 1, name: name), limit: .none)
    }
    let first = try #require(enter(1000, "a"))
    #expect(enter(1000, "b") != nil && enter(1000, "c") == nil && enter(1000, "a") == nil)
    #expect(registry.refusal(of: 1000).contains("user 1000 has 2 processes"))
    for _ in 0..<2 { #expect(registry.identifiersForChild(in: first.group) != nil) }
    #expect(registry.identifiersForChild(in: first.group) == nil)
    for user: UInt32 in [0, 7, 1001] { #expect((0..<2).allSatisfy { _ in enter(user, "a") != nil }) }
    #expect(enter(0, "a") != nil && enter(7, "a") != nil && enter(1001, "a") == nil)
    // What ends makes room.
    registry.freeIdentifier(first.id, of: first.group)
    #expect(registry.identifiersForChild(in: first.group) != nil && enter(1000, "d") == nil)
  }
}
