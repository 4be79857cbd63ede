import Testing

@testable import VSwapDaemon

@Suite struct FaultStormTests {
  /// A storm whose pager's rounds come when the test says so.
  private struct Rounds {
    var storm = FaultStorm()
    var now: UInt64 = 1_000_000_000
    var faults = 0

    /// Rounds every ten microseconds, with a fault each; `threads` take turns.
    init(_ count: Int, _ threads: [Int32]) {
      for index in 0..<count { round(threads[index % threads.count], after: 10_000) }
    }

    /// A round with so many faults, the first one of `thread`, so many nanoseconds after the one before.
    @discardableResult
    mutating func round(_ thread: Int32, after: UInt64, faults new: Int = 1) -> Bool {
      now += after
      faults += new
      return storm.note(faults: faults, thread: thread, now: now)
    }

    /// The pager looks in vain while the storm is to be watched; it is so again after so long, and not before. One of two threads faults
    /// every 100 microseconds.
    mutating func looksInVain(restingMilliseconds rest: Int) {
      #expect(storm.isToBeWatched)
      storm.endedLookInVain(at: now)
      #expect(storm.isShared && !storm.isToBeWatched && !storm.isCrowded)
      for _ in 1..<10 * rest {
        round(faults % 2 == 0 ? 7 : 8, after: 100_000)
        #expect(storm.isShared && !storm.isToBeWatched && !storm.isCrowded)
      }
      round(faults % 2 == 0 ? 7 : 8, after: 100_000)
      #expect(storm.isToBeWatched)
    }
  }

  @Test func itRagesAfterSixteenRoundsWithoutAPause() {
    var rounds = Rounds(16, [7])
    #expect(!rounds.storm.isRaging)
    rounds.round(7, after: FaultStorm.gap - 1)
    #expect(rounds.storm.isRaging && rounds.storm.isBeginning && rounds.storm.isYoung)
    rounds.round(7, after: 10)
    #expect(rounds.storm.isRaging && !rounds.storm.isBeginning && rounds.storm.isYoung)
    rounds.round(7, after: FaultStorm.gap)
    #expect(!rounds.storm.isRaging)
  }

  @Test func faultsThatAreNoStormCanBeSteady() {
    var rounds = Rounds(0, [7])
    for count in 1...40 {
      rounds.round(7, after: 1_999_999)
      #expect(rounds.storm.isSteady(at: rounds.now) == (count > 16) && !rounds.storm.isRaging)
    }
    // Not for ever, if nothing happens.
    #expect(rounds.storm.isSteady(at: rounds.now + 99_999_999) && !rounds.storm.isSteady(at: rounds.now + 100_000_000))
    rounds.round(7, after: 2_000_000)
    #expect(!rounds.storm.isSteady(at: rounds.now))
  }

  @Test func roundsWithoutFaultsAreNone() {
    var rounds = Rounds(17, [7])
    let wasNoted = rounds.round(8, after: 1, faults: 0)
    #expect(!wasNoted && rounds.storm.isBeginning && !rounds.storm.isShared)
  }

  @Test func itIsNotYoungForever() {
    let rounds = Rounds(300, [7])
    #expect(rounds.storm.isRaging && !rounds.storm.isYoung)
  }

  @Test func oneThreadSharesWithNobody() {
    let rounds = Rounds(100, [7])
    #expect(!rounds.storm.isShared && !rounds.storm.isCrowded)
  }

  @Test func threadsThatTakeTurnsShareUntilOneIsLeft() {
    #expect(!Rounds(16, [7, 8]).storm.isShared)
    var rounds = Rounds(17, [7, 8])
    #expect(rounds.storm.isShared)
    // The last one goes on alone.
    rounds.round(7, after: FaultStorm.gap - 1)
    #expect(rounds.storm.isShared)
    rounds.round(7, after: 1)
    #expect(!rounds.storm.isShared && rounds.storm.isOfSeveral)
    // The others are remembered for a while.
    for _ in 0..<47 { rounds.round(7, after: 100_000) }
    #expect(rounds.storm.isOfSeveral)
    rounds.round(7, after: 100_000)
    #expect(rounds.storm.isRaging && !rounds.storm.isOfSeveral)
    // Several faults in one round are of several threads.
    rounds.round(7, after: 1, faults: 2)
    #expect(rounds.storm.isShared)
    // Far from each other faults are no storm.
    for thread: Int32 in [8, 7, 8, 7] { rounds.round(thread, after: FaultStorm.gap) }
    #expect(!rounds.storm.isShared)
  }

  @Test func threeThreadsAreACrowdAndTwoAreNot() {
    #expect(!Rounds(100, [7, 8]).storm.isCrowded)
    #expect(!Rounds(100, [7, 7, 8, 8, 8]).storm.isCrowded)
    var rounds = Rounds(100, [7, 8, 9])
    #expect(rounds.storm.isShared && rounds.storm.isCrowded)
    // The third one stays away.
    for thread: Int32 in [8, 9, 8, 9, 8, 9, 8] { rounds.round(thread, after: FaultStorm.gap / 4) }
    #expect(rounds.storm.isShared && !rounds.storm.isCrowded)
    // Three faults in one round are of three threads.
    rounds.round(9, after: 1, faults: 3)
    #expect(rounds.storm.isCrowded)
  }

  @Test func whereLookingIsInVainItSleepsForAWhile() {
    var rounds = Rounds(20, [7, 8])
    // Each time twice as long, but not for ever.
    for rest in [1, 2, 4, 8, 16, 32, 64, 64] { rounds.looksInVain(restingMilliseconds: rest) }
    // Until it was of use 256 times in a row.
    for _ in 0..<255 { rounds.storm.endedLook() }
    rounds.looksInVain(restingMilliseconds: 64)
    for _ in 0..<256 { rounds.storm.endedLook() }
    rounds.looksInVain(restingMilliseconds: 1)
  }
}
