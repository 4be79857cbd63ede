import Testing

@testable import VSwapDaemon

@Suite struct GroupNamesTests {
  private let names = GroupNames(user: 0, namespace: 1)
  private let own = GroupKey(user: 0, namespace: 1, name: "web")
  private let container = GroupKey(user: 0, namespace: 2, name: "web")
  private let first = GroupKey(user: 1000, namespace: 1, name: "web")
  private let second = GroupKey(user: 1001, namespace: 1, name: "web")

  @Test func aNameThatIsThereOnceIsEnough() {
    for key in [own, container, first] {
      #expect(names.text(for: key, among: [key]) == "web")
      #expect(names.find("web", among: [key]) == [key])
    }
  }

  @Test func nobodyTakesTheDaemonsOwnNames() {
    let all: Set = [own, container, first, second]
    #expect(names.text(for: own, among: all) == "web")
    #expect(names.find("web", among: all) == [own])
  }

  @Test func everyGroupIsFoundByWhatItIsCalled() {
    for all: Set in [[own, container, first, second], [container, first], [first, second], [container, own]] {
      #expect(Set(all.map { names.text(for: $0, among: all) }).count == all.count)
      for key in all { #expect(names.find(names.text(for: key, among: all), among: all) == [key]) }
    }
    #expect(names.text(for: first, among: [first, second]) == "1000:web")
    #expect(names.text(for: container, among: [own, container]) == "0:2:web")
  }

  @Test func whatDoesNotSayEnoughMeansSeveral() {
    #expect(Set(names.find("web", among: [first, second])) == [first, second])
    #expect(Set(names.find("0:web", among: [own, container])) == [own, container])
    #expect(names.find("web", among: []) == [] && names.find("1:web", among: [own]) == [])
  }

  @Test(
    "a name cannot look like another user's group",
    arguments: [
      ("web", "web"), ("", ""), (":web", ":web"), ("a:web", "a:web"), ("1000:web", "web"), ("0:web", nil), ("1000:0:web", nil),
      ("1000:1000:web", nil), ("01000:web", nil), ("99999999999999999999:web", nil), ("1000:", ""),
    ] as [(String, String?)])
  func namesOfUser1000(text: String, name: String?) {
    #expect(GroupNames.name(in: text, of: 1000) == name)
  }
}
