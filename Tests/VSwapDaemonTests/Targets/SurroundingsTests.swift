import Testing

@testable import VSwapDaemon

@Suite struct SurroundingsTests {
  /// Faults on a place after others came along there.
  @Test func whereFaultsFollowAllComesAlong() {
    var surroundings = Surroundings()
    defer { surroundings.destroy() }
    for place: UInt64 in 1...200 {
      surroundings.fault(16 * place)
      #expect(surroundings.pages() == Surroundings.most)
      surroundings.brought(around: 16 * place, left: 4, swapped: 1000)
      surroundings.fault(16 * place + 9)
    }
  }

  @Test func whereNoneFollowHardlyAnythingDoes() {
    var surroundings = Surroundings()
    defer { surroundings.destroy() }
    var pages: [Int] = []
    for place: UInt64 in 1...1000 {
      surroundings.fault(16 * place)
      let most = surroundings.pages()
      pages.append(most)
      if most > 1 { surroundings.brought(around: 16 * place, left: 4, swapped: 8) }
    }
    #expect(pages.first == Surroundings.most)
    // One in sixteen is tried.
    #expect(pages.suffix(320).reduce(0) { $0 + $1 - 1 } <= 40)
    // What is tried and pays brings it back.
    for place: UInt64 in 2000...2400 {
      surroundings.fault(16 * place)
      if surroundings.pages() > 1 { surroundings.brought(around: 16 * place, left: 4, swapped: 1000) }
      surroundings.fault(16 * place + 9)
    }
    #expect(surroundings.pages() == Surroundings.most)
  }

  /// With much that is out faults may take their time; with nothing left around there is nothing to be seen.
  @Test func nobodyIsJudgedEarly() {
    var surroundings = Surroundings()
    defer { surroundings.destroy() }
    for place: UInt64 in 1...1000 {
      surroundings.fault(16 * place)
      surroundings.brought(around: 16 * place, left: place % 2 == 0 ? 0 : 4, swapped: 100_000)
    }
    #expect(surroundings.pages() == Surroundings.most)
  }
}
