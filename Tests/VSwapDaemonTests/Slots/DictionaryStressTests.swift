import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite(.serialized) struct DictionaryStressTests {
  /// Groups come, get a dictionary, and go, while workers compress, compact and train, and others unpack whatever slot they come across.
  /// Every page that a group reads must be the one that it stored, and in the end nothing may be left.
  @Test func groupsComeAndGo() throws {
    #if DEBUG
      Interleaving.rarity.store(200, ordering: .relaxed)
      defer { Interleaving.rarity.store(0, ordering: .relaxed) }
    #endif
    let stress = try DictionaryStress(groups: 2, lives: max(3, TestScale.rounds(20)), pages: TestScale.rounds(3000))
    onThreads(6) { thread in
      switch thread {
      case 0..<2: stress.live(as: thread)
      case 2..<4: stress.compress()
      case 4: stress.attend()
      default: stress.meddle()
      }
    }
    #expect(stress.wrongLoads == 0, "VSWAP_SEED=\(SeededRandom.seed)")
    #expect(stress.trained > 0)
    print("\(stress.loads) loads, \(stress.trained) dictionaries, \(stress.strangersReads) pages unpacked by others")
    #expect(stress.isCleanAfterwards(), "VSWAP_SEED=\(SeededRandom.seed)")
    stress.destroy()
  }
}

private final class DictionaryStress: Sendable {
  private let layer: SlotLayer
  private let lives: Int
  private let pages: Int
  private let running: Atomic<Int>
  private let wrong = Atomic<Int>(0)
  private let loaded = Atomic<Int>(0)
  private let read = Atomic<Int>(0)
  private let dictionaries = Atomic<Int>(0)
  private let numbers = Numbers()
  private let emptyBytes: Int

  init(groups: Int, lives: Int, pages: Int) throws {
    layer = try SlotLayer.create(maximumSlots: 600, cacheFrames: 32, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 26)
    emptyBytes = layer.dictionaries.metadataBytes
    self.lives = lives
    self.pages = pages
    running = Atomic(groups)
  }

  func destroy() { layer.destroy() }

  var wrongLoads: Int { wrong.load(ordering: .relaxed) }
  var loads: Int { loaded.load(ordering: .relaxed) }
  var trained: Int { dictionaries.load(ordering: .relaxed) }
  var strangersReads: Int { read.load(ordering: .relaxed) }
  private var isRunning: Bool { running.load(ordering: .relaxed) > 0 }

  /// One group after the other: a parent and a child, which share pages.
  func live(as thread: Int) {
    var random = SeededRandom(seed: SeededRandom.seed &+ UInt64(thread))
    let page = TestPage()
    let codec = try! Codec.create()
    for life in 0..<lives {
      let content = CommonContent(seed: UInt64(thread * 1000 + life))
      let parent = numbers.take()
      layer.dictionaries.join(target: parent, domain: parent)
      layer.dictionaries.join(target: parent + 1, domain: parent)
      if life % 3 != 2 { content.show(to: layer.dictionaries, target: parent, page: page) }
      // Every third group stays until its dictionary is there, however long a busy machine takes for the training.
      var rounds = 0
      repeat {
        run(parent, content, page, codec, &random)
        rounds += 1
      } while life % 3 == 0 && layer.dictionaries.number(forTarget: parent) == 0 && rounds < 1000
      if layer.dictionaries.number(forTarget: parent) != 0 { dictionaries.add(1, ordering: .relaxed) }
      layer.dictionaries.end(domain: parent, targets: [parent, parent + 1])
      numbers.give(parent)
      content.destroy()
    }
    page.destroy()
    codec.destroy()
    running.subtract(1, ordering: .relaxed)
  }

  private func run(_ parent: UInt32, _ content: CommonContent, _ page: TestPage, _ codec: Codec, _ random: inout SeededRandom) {
    var held: [(slot: SlotNumber, key: UInt64)] = []
    for _ in 0..<pages {
      if held.count < 200 {
        let key = random.next()
        content.fill(page, key: key)
        let target = parent + UInt32(random.below(2))
        if let slot = layer.store(page: page.bytes, target: target, virtualPage: key & 0xFFFF) {
          held.append((slot, key))
          if random.below(4) == 0, layer.retain(slot) { held.append((slot, key)) }
        } else {
          sched_yield()
        }
      }
      guard !held.isEmpty else { continue }
      let place = random.below(held.count)
      check(held[place], content, page, codec)
      if random.below(3) == 0 { layer.release(held.remove(at: place).slot) }
    }
    for wanted in held {
      check(wanted, content, page, codec)
      layer.release(wanted.slot)
    }
  }

  private func check(_ wanted: (slot: SlotNumber, key: UInt64), _ content: CommonContent, _ page: TestPage, _ codec: Codec) {
    let result = layer.load(wanted.slot, into: page.bytes, codec: codec)
    loaded.add(1, ordering: .relaxed)
    if result == .lost || !content.isContent(of: page, key: wanted.key) { wrong.add(1, ordering: .relaxed) }
  }

  func compress() {
    let codec = try! Codec.create()
    while isRunning {
      if layer.compressOldest(codec: codec) == .nothing { sched_yield() }
    }
    codec.destroy()
  }

  func attend() {
    while isRunning {
      if layer.dictionaries.needsAttention { layer.dictionaries.attend() }
      _ = layer.compact(maximumMoves: 20)
      usleep(500)
    }
  }

  /// Like a swapoff's worker: any slot, held for as long as it takes to unpack it, whatever becomes of its group.
  func meddle() {
    var random = SeededRandom(seed: SeededRandom.seed &+ 77)
    let page = TestPage()
    let codec = try! Codec.create()
    while isRunning {
      let slot = SlotNumber(1 + random.below(600))
      guard layer.table.tryRetain(slot) else { continue }
      if layer.table.word(slot).kind == .pool {
        _ = layer.load(slot, into: page.bytes, codec: codec)
        read.add(1, ordering: .relaxed)
      }
      layer.release(slot)
    }
    page.destroy()
    codec.destroy()
  }

  func isCleanAfterwards() -> Bool {
    let codec = try! Codec.create()
    defer { codec.destroy() }
    while layer.compressOldest(codec: codec) != .nothing {}
    layer.dictionaries.attend()
    let figures = layer.statistics()
    return figures.slotsInUse == 0 && figures.objects == 0 && figures.lostPages == 0 && !layer.dictionaries.needsAttention
      && layer.dictionaries.metadataBytes <= emptyBytes + pageSize
  }
}

/// Of the groups that can be there at the same time: the one that was given back first comes next.
private final class Numbers: @unchecked Sendable {
  private let lock = Lock.create()
  private var free: [UInt32] = [1, 3, 5]

  deinit { lock.destroy() }

  func take() -> UInt32 {
    lock.lock()
    defer { lock.unlock() }
    return free.removeFirst()
  }

  func give(_ number: UInt32) {
    lock.lock()
    free.append(number)
    lock.unlock()
  }
}
