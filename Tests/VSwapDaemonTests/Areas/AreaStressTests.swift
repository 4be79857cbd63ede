import CUserfault
import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite(.serialized) struct AreaStressTests {
  /// Pagers store, load and release; one thread compresses, one writes back and cleans, and two take areas out of use and add new ones,
  /// all at once. Operations on the disk fail, but what is on it is right: no page may be lost or wrong.
  @Test func threadsAndSwapoffsShareTheAreas() throws {
    #if DEBUG
      Interleaving.rarity.store(100, ordering: .relaxed)
      defer { Interleaving.rarity.store(0, ordering: .relaxed) }
      let rounds = TestScale.rounds(200_000)
    #else
      let rounds = TestScale.rounds(400_000)
    #endif
    let stress = try AreaStress(pagers: 3, rounds: rounds)
    onThreads(7) { thread in
      switch thread {
      case 0..<3: stress.page(as: thread)
      case 3: stress.compress()
      case 4: stress.writeBack()
      default: stress.swapoffs(thread)
      }
    }
    print(stress.summary)
    #expect(stress.complaints == [], "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(stress.endsEmpty() == nil, "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(TestScale.factor < 1 || stress.retired > 0 && stress.reused > 0)
    stress.destroy()
  }
}

private final class AreaStress: @unchecked Sendable {
  /// What one pager holds: under its lock, since swapoff brings pages back.
  private final class Held {
    let lock = Lock.create()
    var keys: [SlotNumber: UInt64] = [:]
    var slots: [SlotNumber] = []
    var positions: [SlotNumber: Int] = [:]
    let page = TestPage()
    let scratch = TestPage()

    func add(_ slot: SlotNumber, _ key: UInt64) {
      keys[slot] = key
      positions[slot] = slots.count
      slots.append(slot)
    }

    func remove(_ slot: SlotNumber) {
      keys[slot] = nil
      let position = positions.removeValue(forKey: slot)!
      let last = slots.removeLast()
      if last != slot {
        slots[position] = last
        positions[last] = position
      }
    }
  }

  private let layer: SlotLayer
  private let disk: FakeDisk
  private let budget: FrameBudget
  private let writeback: Writeback
  private var work: Writeback.Work
  /// Stands for `Writeback.barrier`: held for one round.
  private let workLock = Lock.create()
  private let held: [Held]
  private let rounds: Int
  private let running: Atomic<Int>
  private let loads = Atomic<Int>(0)
  private let fromAreas = Atomic<Int>(0)
  private let taken = Atomic<Int>(0)
  private let off = Atomic<Int>(0)
  private let cancelled = Atomic<Int>(0)
  private let lock = Lock.create()
  /// Those that no swapoff is under way for, under `lock`.
  private var areas: [Int] = []
  private var told: [String] = []
  /// Under `lock`.
  private var late: [PageBatch] = []

  init(pagers: Int, rounds: Int) throws {
    layer = try SlotLayer.create(
      maximumSlots: 3000, cacheFrames: 48, poolReserveBytes: 1 << 26, poolLimitBytes: 12 * CompressedPool.blockSize)
    disk = FakeDisk(seed: SeededRandom.seed, rates: FaultRates(failedWrites: 100, failedReads: 40))
    budget = layer.budget
    writeback = try Writeback(layer: layer, budget: budget)
    work = Writeback.Work(
      layer: layer, writing: FakeStorage(disk: disk, depth: 3, seed: SeededRandom.seed),
      cleaning: FakeStorage(disk: disk, depth: 1, seed: SeededRandom.seed &+ 1))
    held = (0..<pagers).map { _ in Held() }
    self.rounds = rounds
    running = Atomic(pagers)
    for _ in 0..<3 { try addArea() }
    layer.enableWriteback()
  }

  func destroy() {
    layer.destroy()
    for one in held {
      one.lock.destroy()
      one.page.destroy()
      one.scratch.destroy()
    }
    workLock.destroy()
    lock.destroy()
  }

  var complaints: [String] {
    lock.lock()
    defer { lock.unlock() }
    return told
  }

  var retired: Int { off.load(ordering: .relaxed) }
  var reused: Int { layer.statistics().reusedCopies }

  var summary: String {
    let loads = loads.load(ordering: .relaxed)
    let fromAreas = fromAreas.load(ordering: .relaxed)
    let taken = taken.load(ordering: .relaxed)
    let cancelled = cancelled.load(ordering: .relaxed)
    return "\(loads) loads, \(fromAreas) of them from areas, \(taken) pages to targets; \(retired) swapoffs, "
      + "\(cancelled) cancelled; \(disk.writes) segments written; \(layer.statistics().reusedCopies) clean copies reused"
  }

  private func complain(_ what: String) {
    lock.lock()
    if told.count < 10 { told.append(what) }
    lock.unlock()
  }

  private var isRunning: Bool { running.load(ordering: .acquiring) > 0 }

  private func addArea() throws {
    lock.lock()
    let segments = 6 + areas.count * 2
    lock.unlock()
    let area = try layer.areas.add(
      bytes: segments * AreaPlace.segmentBytes, priority: 0, identity: UInt64.random(in: 0...UInt64.max))
    lock.lock()
    if let area {
      if areas.contains(area) { told.append("a number twice") }
      areas.append(area)
    }
    lock.unlock()
  }

  // MARK: Pagers

  func page(as thread: Int) {
    let mine = held[thread]
    var random = SeededRandom(seed: SeededRandom.seed &+ UInt64(thread))
    let page = TestPage()
    let scratch = TestPage()
    let codec = try! Codec.create()
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 3 * pageSize, alignment: pageSize)
    for round in 0..<rounds {
      if round % 64 == 0 { bringInLate() }
      mine.lock.lock()
      let slot = mine.slots.randomElement(using: &random)
      switch random.below(10) {
      case 0...4:
        let key = UInt64(thread) << 48 | UInt64(round) << 8 | random.next() & 15
        page.fill(key: key)
        let isWanted = mine.slots.count < (round / 8000 % 2 == 0 ? 900 : 100)
        let stored = isWanted ? layer.store(page: page.bytes, target: UInt32(thread), virtualPage: UInt64(round)) : nil
        if let stored {
          mine.add(stored, key)
        } else if let slot, !isWanted || random.below(20) == 0 {
          mine.remove(slot)
          layer.release(slot)
        }
        mine.lock.unlock()
        // The workers are behind, or everything is full.
        if isWanted && stored == nil { usleep(50) }
      default:
        guard let slot, let key = mine.keys[slot] else {
          mine.lock.unlock()
          continue
        }
        // Half of the time a swapoff may bring it back meanwhile.
        let isShared = random.below(2) == 0 && layer.retain(slot)
        if isShared { mine.lock.unlock() }
        if !reads(slot, page, buffer, codec) || !page.holds(key: key, scratch: scratch) {
          complain("slot \(slot) is wrong or lost")
        } else if random.below(3) == 0, layer.keepCopy(slot, of: page.bytes) {
          // It is mapped, and leaves again. Without a frame for it the slot stays as it is.
          if !layer.evictCopy(slot, page: page.bytes, target: UInt32(thread), virtualPage: layer.owner(of: slot).virtualPage) {
            layer.countCopies(-1)
          }
        }
        if isShared { layer.release(slot) } else { mine.lock.unlock() }
      }
    }
    page.destroy()
    scratch.destroy()
    codec.destroy()
    buffer.deallocate()
    running.subtract(1, ordering: .releasing)
  }

  /// As a pager does, but for reads that fail: those are done again, so that nothing gets lost.
  private func reads(_ slot: SlotNumber, _ page: TestPage, _ buffer: UnsafeMutableRawPointer, _ codec: Codec) -> Bool {
    loads.add(1, ordering: .relaxed)
    while true {
      switch layer.load(slot, into: page.bytes, codec: codec) {
      case .zero, .cached, .pool: return true
      case .lost: return false
      case .area(let word):
        fromAreas.add(1, ordering: .relaxed)
        let place = word.place
        let begin = place.offset & ~(pageSize - 1)
        let end = (place.offset + place.bytes + pageSize - 1) & ~(pageSize - 1)
        guard disk.read(area: place.area, offset: begin, length: end - begin, into: buffer) else { continue }
        guard let content = layer.content(of: buffer + (place.offset - begin), slot, word) else {
          // It must have moved meanwhile. If it has not, this loses it, and the next turn says so.
          layer.loseInArea(slot, word)
          continue
        }
        return layer.unpack(content, into: page.bytes, codec: codec)
      }
    }
  }

  // MARK: Workers

  func compress() {
    let codec = try! Codec.create()
    while isRunning {
      switch layer.compressOldest(codec: codec) {
      case .compressed: budget.poolFull = false
      case .stale: break
      case .nothing: sched_yield()
      case .poolFull:
        budget.poolFull = true
        _ = layer.compact(maximumMoves: 50)
        sched_yield()
      }
    }
    codec.destroy()
  }

  func writeBack() {
    var random = SeededRandom(seed: SeededRandom.seed &+ 50)
    while isRunning {
      workLock.lock()
      writeback.round(&work)
      if random.below(3) == 0 { work.writer.flush() }
      workLock.unlock()
      repair()
      sched_yield()
    }
    work.writer.drain()
  }

  /// A failed write takes an area out of the rotation; the test wants it back.
  private func repair() {
    lock.lock()
    for area in areas where layer.areas.rotation(area) == .faulty { layer.areas.setRotation(area, .active) }
    lock.unlock()
  }

  func swapoffs(_ thread: Int) {
    var random = SeededRandom(seed: SeededRandom.seed &+ UInt64(thread))
    while isRunning {
      // So that there is something in it.
      usleep(UInt32(random.below(20_000)))
      lock.lock()
      let area = areas.isEmpty ? nil : areas.remove(at: random.below(areas.count))
      if let area { layer.areas.setRotation(area, .draining) }
      lock.unlock()
      guard let area else { continue }
      workLock.lock()
      work.writer.drain()
      workLock.unlock()
      do {
        try swapoff(area, &random)
        lock.lock()
        let isLow = areas.count < 2
        lock.unlock()
        if isLow { try addArea() }
      } catch {
        complain("\(error)")
      }
    }
  }

  private func swapoff(_ area: Int, _ random: inout SeededRandom) throws {
    let swapoff = try Swapoff(
      layer: layer, area: area, storage: FakeStorage(disk: disk, depth: 1 + random.below(8), seed: random.next()),
      writing: FakeStorage(disk: disk, depth: 2, seed: random.next()), sink: self)
    swapoff.interval = 0
    swapoff.patience = 20_000_000
    let patience = random.below(2) == 0 ? random.below(30) : .max
    var questions = 0
    // While pagers, writeback and the other swapoff fill the pool again, room may come late.
    while true {
      let isEmpty = try swapoff.run(workers: 2) { _ in
        questions += 1
        return questions < patience
      }
      if isEmpty { break }
      if questions >= patience || random.below(4) == 0 || !isRunning {
        cancelled.add(1, ordering: .relaxed)
        lock.lock()
        layer.areas.setRotation(area, .active)
        areas.append(area)
        lock.unlock()
        return
      }
      usleep(1000)
    }
    let figures = layer.areas.figures(area)
    if figures.liveObjects != 0 || figures.liveBytes != 0 {
      complain("area \(area) has \(figures.liveObjects) objects at its end")
    }
    off.add(1, ordering: .relaxed)
    disk.remove(area: area)
    layer.areas.remove(area)
  }

  // MARK: The end

  /// What is wrong when all threads have ended and everything was read and released.
  func endsEmpty() -> String? {
    let page = TestPage()
    let scratch = TestPage()
    let codec = try! Codec.create()
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: 3 * pageSize, alignment: pageSize)
    defer {
      page.destroy()
      scratch.destroy()
      codec.destroy()
      buffer.deallocate()
    }
    while !late.isEmpty { bringInLate() }
    let before = layer.statistics()
    let pages = held.reduce(0) { $0 + $1.slots.count }
    if before.slotsInUse != pages || before.lostPages != 0 { return "\(before) with \(pages) pages" }
    for one in held {
      for (slot, key) in one.keys {
        if !reads(slot, page, buffer, codec) || !page.holds(key: key, scratch: scratch) {
          return "slot \(slot) is wrong at the end"
        }
        layer.release(slot)
      }
    }
    writeback.recycle(&work, discarding: true)
    let figures = layer.statistics()
    if figures.slotsInUse != 0 || figures.objects != 0 || figures.arenaBytes != 0
      || layer.freeFrames != figures.cacheCapacityPages
    {
      return "\(figures)"
    }
    for area in areas {
      let figures = layer.areas.figures(area)
      if figures.liveObjects != 0 || figures.liveBytes != 0 || figures.usedBytes != 0 { return "area \(area): \(figures)" }
    }
    return nil
  }
}

extension AreaStress: PageSink {
  func room(target: UInt32) -> Int { Int(target) * 40 }
  func totalRoom() -> Int { .max }
  func filesChanged() {}
  func dropCopies() {}

  /// Some targets do not answer in time, and do what they were asked for when nobody waits any more.
  func deliver(_ batch: PageBatch) -> Bool {
    if batch.items[0].slot % 8 == 1 {
      lock.lock()
      late.append(batch)
      lock.unlock()
      return false
    }
    bringIn(batch)
    return true
  }

  /// A target that was late comes round.
  private func bringInLate() {
    lock.lock()
    let batch = late.isEmpty ? nil : late.removeFirst()
    lock.unlock()
    if let batch { bringIn(batch) }
  }

  private func bringIn(_ batch: PageBatch) {
    let target = held[Int(batch.target)]
    target.lock.lock()
    defer { target.lock.unlock() }
    for index in batch.items.indices where batch.items[index].slot % 4 != 0 {
      let item = batch.items[index]
      guard layer.table.isStill(item.slot, item.word) else { continue }
      batch.items[index].isTaken = take(item.slot, batch.content + index * pageSize, target)
    }
  }

  func deliverToAll(_ batch: PageBatch) -> Bool {
    let slot = batch.items[0].slot
    let target = held[Int(layer.owner(of: slot).target)]
    target.lock.lock()
    defer { target.lock.unlock() }
    _ = take(slot, UnsafeRawPointer(batch.content), target)
    return true
  }

  /// Under the lock of the target.
  private func take(_ slot: SlotNumber, _ content: UnsafeRawPointer, _ target: Held) -> Bool {
    guard let key = target.keys[slot] else { return false }
    memcpy(target.page.bytes, content, pageSize)
    if !target.page.holds(key: key, scratch: target.scratch) { complain("slot \(slot) is wrong, by swapoff") }
    target.remove(slot)
    layer.release(slot)
    taken.add(1, ordering: .relaxed)
    return true
  }
}
