import Testing

@testable import VSwapDaemon

@Suite struct SwapCacheTests {
  @Test func framesComeAndGo() throws {
    let cache = try SwapCache.create(capacity: 2)
    defer { cache.destroy() }
    let first = try #require(cache.allocate())
    let second = try #require(cache.allocate())
    #expect(first != second && cache.allocate() == nil && cache.freeFrames == 0)
    cache.free(first)
    #expect(cache.freeFrames == 1)
    #expect(cache.allocate() == first)
  }

  /// Order, stale entries, put-backs and sweeps, against an array.
  @Test func theOrderIsThatOfAModel() throws {
    let seed = SeededRandom.seed
    var random = SeededRandom(seed: seed)
    let cache = try SwapCache.create(capacity: 13)
    defer { cache.destroy() }
    var queue: [(frame: UInt32, slot: SlotNumber)] = []
    var popped: [(frame: UInt32, slot: SlotNumber)] = []
    for round in 1...TestScale.rounds(200_000) {
      switch random.below(8) {
      case 0...3:
        guard let frame = cache.allocate() else { continue }
        cache.setSlot(frame, SlotNumber(round))
        cache.pushNewest(frame)
        queue.append((frame, SlotNumber(round)))
      case 4, 5:
        // A refault: the frame goes, its entry stays and is stale.
        guard !queue.isEmpty else { continue }
        cache.free(queue.remove(at: random.below(queue.count)).frame)
      case 6:
        let (found, expected) = (cache.popOldest(), queue.first)
        guard found?.frame == expected?.frame, found?.slot == expected?.slot else {
          Issue.record("popped \(String(describing: found)), VSWAP_SEED=\(seed)")
          return
        }
        if !queue.isEmpty { popped.append(queue.removeFirst()) }
      default:
        guard let last = popped.popLast() else { continue }
        if random.below(2) == 0 {
          cache.putBackOldest(last.frame)
          queue.insert(last, at: 0)
        } else {
          cache.free(last.frame)
        }
      }
    }
    #expect(cache.freeFrames == 13 - queue.count - popped.count, "VSWAP_SEED=\(seed)")
  }
}
