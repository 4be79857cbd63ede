import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite(.serialized) struct SlotLayerStressTests {
  /// Pagers store, load, share and release; workers compress; one compacts; the pool's limit goes up and
  /// down. Everything is so small that slots, frames and objects are reused all the time. Every page that
  /// is loaded must have the content of the version that was stored last.
  @Test(arguments: [false, true]) func everyLoadSeesTheLatestVersion(poolIsTight: Bool) throws {
    #if DEBUG
      // Debug builds are slow, and pause where it hurts.
      Interleaving.rarity.store(50, ordering: .relaxed)
      defer { Interleaving.rarity.store(0, ordering: .relaxed) }
      let rounds = TestScale.rounds(60_000)
    #else
      let rounds = TestScale.rounds(300_000)
    #endif
    let stress = try Stress(pagers: 3, rounds: rounds, poolIsTight: poolIsTight)
    onThreads(6) { thread in
      switch thread {
      case 0..<3: stress.page(as: thread)
      case 3..<5: stress.compress()
      default: stress.compact()
      }
    }
    #expect(stress.wrongLoads == 0, "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(stress.loads > 0)
    // A short run may not get that far, and a tight pool may be too full to thin out.
    if TestScale.factor >= 1 { #expect(stress.compressed > 0 && stress.copies > 0 && (stress.moved > 0 || poolIsTight)) }
    print(
      "\(stress.loads) loads, \(stress.compressed) pages compressed, \(stress.moved) objects moved, "
        + "\(stress.copies) clean copies kept, \(stress.reused) reused")
    #expect(stress.isCleanAfterwards(), "VSWAP_SEED=\(SeededRandom.seed)")
    stress.destroy()
  }
}

/// The state the threads of the stress test share.
private final class Stress: Sendable {
  private let layer: SlotLayer
  private let pagers: Int
  private let rounds: Int
  private let poolIsTight: Bool
  private let running: Atomic<Int>
  private let wrong = Atomic<Int>(0)
  private let loaded = Atomic<Int>(0)
  private let compressions = Atomic<Int>(0)
  private let moves = Atomic<Int>(0)
  private let kept = Atomic<Int>(0)
  /// Slots that one pager has retained for another to look at.
  private let handovers = Handovers()

  init(pagers: Int, rounds: Int, poolIsTight: Bool) throws {
    layer = try SlotLayer.create(
      maximumSlots: 2000, cacheFrames: 32, poolReserveBytes: 1 << 26,
      poolLimitBytes: poolIsTight ? 16 * CompressedPool.blockSize : 1 << 26)
    self.pagers = pagers
    self.rounds = rounds
    self.poolIsTight = poolIsTight
    running = Atomic(pagers)
  }

  func destroy() {
    layer.destroy()
    handovers.lock.destroy()
  }

  var wrongLoads: Int { wrong.load(ordering: .relaxed) }
  var loads: Int { loaded.load(ordering: .relaxed) }
  var compressed: Int { compressions.load(ordering: .relaxed) }
  var moved: Int { moves.load(ordering: .relaxed) }
  var copies: Int { kept.load(ordering: .relaxed) }
  var reused: Int { layer.statistics().reusedCopies }

  private var isRunning: Bool { running.load(ordering: .relaxed) > 0 }

  func page(as thread: Int) {
    let pager = StressPager(thread: thread)
    var held: [(slot: SlotNumber, key: UInt64)] = []
    for round in 0..<rounds {
      switch pager.random.below(10) {
      case 0...3: storeOrRelease(pager, &held, version: UInt64(round))
      case 4...7:
        if let page = held.randomElement(using: &pager.random) { check(page, pager) }
      case 8:
        guard let page = held.randomElement(using: &pager.random), layer.retain(page.slot) else { continue }
        handovers.append(page)
      default:
        // Sometimes the original goes first, sometimes the share.
        if !held.isEmpty, pager.random.below(2) == 0 {
          let page = held.remove(at: pager.random.below(held.count))
          check(page, pager)
          layer.release(page.slot)
        }
        guard let page = handovers.takeOldest(keeping: 20) else { continue }
        check(page, pager)
        layer.release(page.slot)
      }
    }
    for page in held {
      check(page, pager)
      layer.release(page.slot)
    }
    pager.destroy()
    running.subtract(1, ordering: .relaxed)
  }

  /// In waves that all pagers share, so that blocks fill up and thin out.
  private func storeOrRelease(
    _ pager: StressPager, _ held: inout [(slot: SlotNumber, key: UInt64)], version: UInt64
  ) {
    if held.count < (loads / 8000 % 2 == 0 ? 800 : 60) {
      // A key of its own for each store; the low four bits choose how it compresses.
      let key = UInt64(pager.thread) << 48 | version << 8 | pager.random.next() & 15
      pager.page.fill(key: key)
      let target = UInt32(pager.thread)
      if let slot = layer.store(page: pager.page.bytes, target: target, virtualPage: version) {
        held.append((slot, key))
        return
      }
      // The workers are behind, or the pool is full.
      sched_yield()
      if pager.random.below(8) != 0 { return }
    }
    if !held.isEmpty { layer.release(held.remove(at: pager.random.below(held.count)).slot) }
  }

  private func check(_ page: (slot: SlotNumber, key: UInt64), _ pager: StressPager) {
    let result = layer.load(page.slot, into: pager.page.bytes, codec: pager.codec)
    loaded.add(1, ordering: .relaxed)
    if result == .lost || !pager.page.holds(key: page.key, scratch: pager.scratch) {
      wrong.add(1, ordering: .relaxed)
      return
    }
    if pager.random.below(3) == 0 { comeBack(page.slot, pager) }
  }

  /// The page is mapped, and leaves again; changed, perhaps. Whoever shares the slot may do the same.
  private func comeBack(_ slot: SlotNumber, _ pager: StressPager) {
    guard layer.keepCopy(slot, of: pager.page.bytes) else { return }
    kept.add(1, ordering: .relaxed)
    let isChanged = pager.random.below(4) == 0
    if isChanged {
      pager.page.bytes.storeBytes(of: pager.random.next(), toByteOffset: pager.random.below(512) * 8, as: UInt64.self)
    }
    let target = UInt32(pager.thread)
    if !layer.evictCopy(slot, page: pager.page.bytes, target: target, virtualPage: UInt64(pager.thread)) {
      layer.countCopies(-1)
    } else if isChanged {
      wrong.add(1, ordering: .relaxed)
    }
  }

  func compress() {
    let codec = try! Codec.create()
    while isRunning {
      switch layer.compressOldest(codec: codec) {
      case .compressed: compressions.add(1, ordering: .relaxed)
      case .nothing, .poolFull: sched_yield()
      case .stale: break
      }
    }
    codec.destroy()
  }

  func compact() {
    var random = SeededRandom(seed: SeededRandom.seed &+ 99)
    while isRunning {
      let moved = layer.compact(maximumMoves: 1 + random.below(20))
      moves.add(moved, ordering: .relaxed)
      if poolIsTight, random.below(50) == 0 {
        layer.setPoolLimit(bytes: (8 + random.below(24)) * CompressedPool.blockSize)
      }
      if moved == 0 { sched_yield() }
    }
  }

  /// Every page that is still cached can be compressed, and everything can be freed.
  func isCleanAfterwards() -> Bool {
    let pager = StressPager(thread: pagers)
    defer { pager.destroy() }
    layer.setPoolLimit(bytes: 1 << 26)
    while layer.compressOldest(codec: pager.codec) != .nothing {}
    guard layer.cachedPages == 0 else { return false }
    while let page = handovers.takeOldest(keeping: 0) {
      check(page, pager)
      layer.release(page.slot)
    }
    let figures = layer.statistics()
    return wrongLoads == 0 && figures.slotsInUse == 0 && figures.objects == 0 && figures.arenaBytes == 0
      && figures.compressedBytes == 0 && figures.zeroPages == 0 && figures.lostPages == 0
      && figures.copies == 0 && layer.freeFrames == figures.cacheCapacityPages
  }
}

/// A queue; with a lock that the thread sanitizer understands, which `Mutex` is not.
private final class Handovers: @unchecked Sendable {
  let lock = Lock.create()
  private var pages: [(slot: SlotNumber, key: UInt64)] = []

  func append(_ page: (slot: SlotNumber, key: UInt64)) {
    lock.lock()
    pages.append(page)
    lock.unlock()
  }

  func takeOldest(keeping: Int) -> (slot: SlotNumber, key: UInt64)? {
    lock.lock()
    defer { lock.unlock() }
    return pages.count > keeping ? pages.removeFirst() : nil
  }
}

/// What one pager thread has to itself.
private final class StressPager {
  let thread: Int
  var random: SeededRandom
  let page = TestPage()
  let scratch = TestPage()
  let codec = try! Codec.create()

  init(thread: Int) {
    self.thread = thread
    random = SeededRandom(seed: SeededRandom.seed &+ UInt64(thread))
  }

  func destroy() {
    page.destroy()
    scratch.destroy()
    codec.destroy()
  }
}
