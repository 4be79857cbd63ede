import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct TargetRegistryTests {
  private let names = GroupNames(user: 0, namespace: 1)

  private func key(_ name: String, user: UInt32 = 0, namespace: UInt64 = 1) -> GroupKey {
    GroupKey(user: user, namespace: namespace, name: name)
  }

  /// Owner words may name a target that has gone, while its children share its pages: its number stays in the group until that has gone.
  @Test func numbersStayInTheirGroup() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let first = try #require(registry.enter(key("a"), limit: .none))
    let child = try #require(registry.identifiersForChild(in: first.group))
    registry.freeIdentifier(first.id, of: first.group)
    let other = try #require(registry.enter(key("b"), limit: .none))
    #expect(Set([first.id, child.id, other.id]).count == 3 && other.group !== first.group)
    // The child's own child may have it.
    #expect(try #require(registry.identifiersForChild(in: first.group)).id == first.id)
    registry.freeIdentifier(child.id, of: first.group)
    registry.freeIdentifier(first.id, of: first.group)
    let later = try (0..<2).map { _ in try #require(registry.identifiersForChild(in: other.group)).id }
    #expect(Set(later) == [first.id, child.id])
  }

  /// A program that executes another one leaves a child behind, which is the group for a while. If the other program made a second group of that name,
  /// nobody would look at the first one again once the child has an agent.
  @Test func whoComesWhileOnlyAChildIsThereJoinsItsGroup() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let first = try #require(registry.enter(key("a"), limit: .fixed(pages: 5000)))
    let child = try #require(registry.identifiersForChild(in: first.group))
    registry.freeIdentifier(first.id, of: first.group)
    let second = try #require(registry.enter(key("a"), limit: .none))
    #expect(second.group === first.group)
    #expect(
      registry.snapshot().isEmpty && registry.groups(called: "a", by: names).first?.targets.isEmpty == true,
      "nobody is served yet")
    registry.freeIdentifier(child.id, of: first.group)
    registry.freeIdentifier(second.id, of: first.group)
    let later = try #require(registry.enter(key("a"), limit: .none))
    #expect(later.group !== first.group)
  }

  @Test func thereAreNoMoreThanOwnerWordsCanName() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let group = try #require(registry.enter(key("a"), limit: .none)).group
    for _ in 1..<TargetRegistry.maximumTargets { #expect(registry.identifiersForChild(in: group) != nil) }
    #expect(registry.identifiersForChild(in: group) == nil && registry.enter(key("b"), limit: .none) == nil)
    #expect(registry.groups(called: "b", by: names).isEmpty)
    registry.freeIdentifier(17, of: group)
    #expect(registry.identifiersForChild(in: group)?.id == 17)
  }

  /// A process that executes something else keeps its group, with its limit: what it executes finds that.
  @Test func aGroupIsThereAsLongAsAProcessOfIt() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let first = try #require(registry.enter(key("a"), limit: .fixed(pages: 5000)))
    let names = GroupNames(user: 0, namespace: 1)
    var ends: [Int32] = [0, 0]
    #expect(pipe(&ends) == 0)
    let family = try Mapping.create(name: "test-family", length: pageSize)
    // The read end of a pipe stands for a pidfd: readable when the other one is closed.
    var target: Target? = Target(
      id: first.id, processID: 17, memoryID: 17, name: "a", group: first.group, counters: .create(), family: family,
      statm: open("/dev/null", O_RDONLY), process: ends[0], isForked: false)
    registry.targetEnded(target!, becauseOf: nil, isDetached: false)
    target = nil
    #expect(registry.groups(called: "a", by: names).first?.group === first.group && registry.endedGroups().isEmpty)
    first.group.account.setLimit(.fixed(pages: 6000))
    let second = try #require(registry.enter(key("a"), limit: .none))
    #expect(second.group === first.group && second.group.account.limit == 6000)
    registry.freeIdentifier(second.id, of: second.group)
    #expect(registry.groupsWithoutTargets().count == 1 && registry.remaining(of: first.group).map(\.processID) == [17])
    close(ends[1])
    registry.removeEndedProcesses()
    #expect(registry.groups(called: "a", by: names).isEmpty && registry.endedGroups().map(\.key.name) == ["a"])
  }

  @Test func aNameBelongsToAUserAndANamespace() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let keys = [key("a"), key("a", user: 1000), key("a", namespace: 2)]
    let groups = try keys.map { try #require(registry.enter($0, limit: .none)).group }
    #expect(Set(groups.map(ObjectIdentifier.init)).count == 3)
    #expect(try #require(registry.enter(key("a", user: 1000), limit: .none)).group === groups[1])
  }

  /// A program that has become another user, or lives in another namespace, is of the group that it was started in.
  @Test func whoShowsThePassIsOfTheGroup() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let first = try #require(registry.enter(key("a"), limit: .none))
    let (elsewhere, pass) = (key("a", user: 1000, namespace: 2), first.group.pass)
    #expect(try #require(registry.enter(elsewhere, pass: pass, limit: .none)).group === first.group)
    #expect(registry.isPass(pass, forGroupNamed: "a") && !registry.isPass(pass, forGroupNamed: "b"))
    #expect(!registry.isPass(0, forGroupNamed: "a") && !registry.isPass(pass &+ 1, forGroupNamed: "a"))
    #expect(try #require(registry.enter(elsewhere, pass: pass &+ 1, limit: .none)).group !== first.group)
    #expect(try #require(registry.enter(key("b", user: 1000), pass: pass, limit: .none)).group.key.user == 1000)
  }

  /// It executes another program, and was alone in its group.
  @Test func thePassOutlivesTheGroup() throws {
    let dictionaries = try Dictionaries.create()
    defer { dictionaries.destroy() }
    let registry = TargetRegistry(dictionaries: dictionaries, whenChanged: {}, log: { _ in })
    let first = try #require(registry.enter(key("a"), limit: .none))
    registry.freeIdentifier(first.id, of: first.group)
    let second = try #require(registry.enter(key("a", user: 1000), pass: first.group.pass, limit: .none))
    #expect(second.group.key == key("a") && second.group.pass == first.group.pass)
    // Not for ever.
    for number in 0..<1024 {
      let other = try #require(registry.enter(key("\(number)"), limit: .none))
      registry.freeIdentifier(other.id, of: other.group)
    }
    #expect(registry.isPass(first.group.pass, forGroupNamed: "a"), "it is there")
    registry.freeIdentifier(second.id, of: second.group)
    for number in 0..<1024 {
      let other = try #require(registry.enter(key("later \(number)"), limit: .none))
      registry.freeIdentifier(other.id, of: other.group)
    }
    #expect(!registry.isPass(first.group.pass, forGroupNamed: "a"))
  }
}
