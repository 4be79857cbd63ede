import Testing

@testable import VSwapDaemon

@Suite struct PromiseTests {
  /// What nobody waits for any more stays with whoever gives it: a child that is handed over is always somebody's.
  @Test func aValueThatComesTooLateIsTheGiversStill() {
    let promise = Promise<Int>()
    #expect(promise.wait(milliseconds: 1) == nil && promise.isWanted)
    #expect(promise.giveUp() == nil)
    #expect(!promise.isWanted && !promise.fulfil(7))
    #expect(promise.wait(milliseconds: 1) == nil)
  }

  @Test func aValueThatComesAtTheLastMomentIsTaken() {
    let promise = Promise<Int>()
    #expect(promise.fulfil(7) && promise.giveUp() == 7)
    #expect(promise.isWanted)
  }
}
