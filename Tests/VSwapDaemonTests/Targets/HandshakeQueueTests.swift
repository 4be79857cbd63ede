import Testing

@testable import VSwapDaemon

@Suite struct HandshakeQueueTests {
  @Test func aUserWithManyConnectionsKeepsNobodyElseWaiting() {
    let queue = HandshakeQueue(bounds: .init(underWay: 2, waiting: 3))
    #expect((0..<7).map { queue.admit($0, of: 1000) } == [.begin, .begin, .wait, .wait, .wait, .refused, .refused])
    #expect(queue.admit(10, of: 1001) == .begin)
  }

  @Test func whoWaitsGetsItsTurnInOrder() {
    let queue = HandshakeQueue(bounds: .init(underWay: 1, waiting: 2))
    for connection: Int32 in 0..<3 { _ = queue.admit(connection, of: 7) }
    #expect(queue.next(afterOneOf: 7) == 1)
    #expect(queue.admit(3, of: 7) == .wait)
    #expect([2, 3, nil] == (0..<3).map { _ in queue.next(afterOneOf: 7) })
    #expect(queue.admit(4, of: 7) == .begin, "nothing is left of those before")
  }

  /// Somebody may have many users.
  @Test func allUsersTogetherHaveABound() {
    let queue = HandshakeQueue(bounds: .init(underWay: 1, waiting: 2), most: 4)
    #expect((0..<4).map { queue.admit($0, of: UInt32($0 / 2)) } == [.begin, .wait, .begin, .wait])
    #expect(queue.admit(4, of: 0) == .refused)
    #expect(queue.admit(5, of: 2) == .begin, "each user has its first")
  }
}
