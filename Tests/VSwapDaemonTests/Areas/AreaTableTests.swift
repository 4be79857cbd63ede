import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct AreaTableTests {
  @Test func placesSurvivePacking() {
    var random = SeededRandom(seed: SeededRandom.seed)
    for _ in 0..<TestScale.rounds(100_000) {
      let place = AreaPlace(
        area: random.below(AreaPlace.maximumAreas), unit: random.next() & (1 << 33 - 1), units: 1 + random.below(128))
      #expect(place.payload < 1 << 44)
      #expect(AreaPlace(payload: place.payload) == place, "VSWAP_SEED=\(SeededRandom.seed)")
      #expect(Int(place.segment) * AreaPlace.unitsPerSegment + place.unitInSegment == Int(place.unit))
      #expect(place.offset / AreaPlace.segmentBytes == Int(place.segment))
      let word = SlotWord.area(place, after: SlotWord(bits: random.next() & ~7))
      #expect(word.kind == .area && word.place == place)
    }
    let last = AreaPlace(area: 15, unit: 1 << 33 - 1, units: 128)
    #expect(AreaPlace(payload: last.payload) == last)
    #expect(last.offset + AreaPlace.unit == AreaPlace.maximumBytes)
  }

  @Test func theHighestPriorityIsFilledFirst() throws {
    let table = AreaTable.create()
    defer { table.destroy() }
    let low = try #require(try table.add(bytes: 5 * AreaPlace.segmentBytes, priority: -2, identity: 1))
    let high = try #require(try table.add(bytes: 4 * AreaPlace.segmentBytes, priority: 7, identity: 2))
    var taken: [Int] = []
    while let (area, _) = table.takeSegment() { taken.append(area) }
    // Without the signature's segment, and the one that cleaning needs.
    #expect(taken == [high, high, low, low, low])
    #expect(!table.hasRoom)
    #expect(try #require(table.takeSegment(cleaning: true)) == (high, 3))
    #expect(try #require(table.takeSegment(cleaning: true)) == (low, 4))
    #expect(table.takeSegment(cleaning: true) == nil)
  }

  @Test func equalPrioritiesTakeTurns() throws {
    let table = AreaTable.create()
    defer { table.destroy() }
    for identity in 0..<3 {
      _ = try table.add(bytes: 10 * AreaPlace.segmentBytes, priority: 3, identity: UInt64(identity))
    }
    var taken: [Int] = []
    for _ in 0..<9 { taken.append(try #require(table.takeSegment()).area) }
    #expect(taken == [0, 1, 2, 0, 1, 2, 0, 1, 2])
    table.setRotation(1, .draining)
    taken = []
    for _ in 0..<4 { taken.append(try #require(table.takeSegment()).area) }
    #expect(taken == [0, 2, 0, 2])
    table.setRotation(1, .active)
    // It comes first now, since its turn was longest ago.
    #expect(try #require(table.takeSegment()).area == 1)
  }

  @Test func aSegmentWithoutObjectsBecomesFreeAgain() throws {
    let table = AreaTable.create()
    defer { table.destroy() }
    let area = try #require(try table.add(bytes: 3 * AreaPlace.segmentBytes, priority: 0, identity: 1))
    let (_, segment) = try #require(table.takeSegment())
    let generation = table.generation(area, segment)
    table.seal(area, segment, objects: 2, units: 30)
    #expect(table.figures(area).liveObjects == 2 && table.figures(area).liveBytes == 30 * AreaPlace.unit)
    #expect(table.nextSealed(area, from: 1)?.segment == segment)
    let first = UInt64(segment) * UInt64(AreaPlace.unitsPerSegment)
    table.release(AreaPlace(area: area, unit: first + 4000, units: 10))
    #expect(table.nextEmpty(area) == nil)
    table.release(AreaPlace(area: area, unit: first + 4010, units: 20))
    #expect(table.figures(area).liveObjects == 0 && table.figures(area).liveBytes == 0)
    #expect(table.nextSealed(area, from: 1) == nil && table.hasRoom)
    #expect(table.nextEmpty(area) == segment)
    #expect(table.nextEmpty(area) == nil)
    table.freed(area, segment)
    #expect(table.figures(area).usedBytes == 0)
    #expect(try #require(table.takeSegment()).segment == segment)
    #expect(table.generation(area, segment) == generation + 1)
    table.giveUp(area, segment)
  }

  @Test func aFailedWriteTakesTheAreaOutOfTheRotation() throws {
    let table = AreaTable.create()
    defer { table.destroy() }
    let area = try #require(try table.add(bytes: 9 * AreaPlace.segmentBytes, priority: 0, identity: 1))
    table.setRotation(area, .draining)
    table.writeFailed(area, offset: 5)
    #expect(table.rotation(area) == .draining)
    table.setRotation(area, .active)
    table.writeFailed(area, offset: 7)
    #expect(table.rotation(area) == .faulty && !table.hasRoom && table.takeSegment() == nil)
    #expect(table.figures(area).writeErrors == 2 && table.figures(area).errorOffset == 7)
  }

  @Test func thereAreSixteenAreasAndNumbersAreUsedAgain() throws {
    let table = AreaTable.create()
    defer { table.destroy() }
    for number in 0..<16 {
      #expect(try table.add(bytes: 4 * AreaPlace.segmentBytes, priority: Int32(number), identity: 1) == number)
    }
    #expect(try table.add(bytes: 4 * AreaPlace.segmentBytes, priority: 0, identity: 1) == nil)
    _ = table.takeSegment()
    table.giveUp(15, 1)
    table.remove(15)
    #expect(table.rotation(15) == .none)
    #expect(try table.add(bytes: 5 * AreaPlace.segmentBytes, priority: 99, identity: 2) == 15)
    #expect(table.figures(15).usedBytes == 0 && table.freeBytes(15) == 4 * AreaPlace.segmentBytes)
    #expect(try #require(table.takeSegment()) == (15, 1))
    #expect(table.identity(15) == 2)
  }

  /// 10^5 random operations against plain Swift.
  @Test func randomOperationsAgreeWithTheModel() throws {
    let model = AreaTableModel(seed: SeededRandom.seed)
    for step in 1...TestScale.rounds(100_000) {
      guard try model.step() else {
        Issue.record("step \(step): \(model.complaint), VSWAP_SEED=\(SeededRandom.seed)")
        return
      }
    }
    #expect(model.removals > 0 || TestScale.factor < 1)
    model.destroy()
  }

  /// Threads release objects while one takes, seals, recycles: no segment is ever with two owners, and all of them come back.
  @Test func threadsReleaseWhileOneRecycles() throws {
    let race = try ReleaseRace(rounds: TestScale.rounds(20_000))
    onThreads(4) { thread in
      if thread == 0 { race.write() } else { race.release(as: thread) }
    }
    #expect(race.isCleanAfterwards(), "VSWAP_SEED=\(SeededRandom.seed)")
    race.destroy()
  }
}

/// An area table beside what should be in it.
private final class AreaTableModel {
  private enum Segment: Equatable {
    case open
    case sealed([Int])
    case empty
  }

  private struct Area {
    var segments: Int
    var priority: Int32
    var rotation = AreaTable.Rotation.active
    var turn = 0
    /// Those that are not free.
    var used: [UInt32: Segment] = [:]
    var generations: [UInt32: UInt32] = [:]
    /// The latest is recycled first.
    var empties: [UInt32] = []
    var cursor: UInt32 = 0

    var free: Int { segments - 1 - used.count }
    var live: [(segment: UInt32, units: [Int])] {
      used.compactMap { if case .sealed(let units) = $0.value { ($0.key, units) } else { nil } }
    }
  }

  private let table = AreaTable.create()
  private var random: SeededRandom
  private var areas: [Int: Area] = [:]
  private var turns = 0
  private(set) var removals = 0
  private(set) var complaint = ""

  init(seed: UInt64) { random = SeededRandom(seed: seed) }

  func destroy() { table.destroy() }

  private func check(_ isRight: Bool, _ what: String) -> Bool {
    if !isRight { complaint = what }
    return isRight
  }

  func step() throws -> Bool {
    let isRight: Bool
    switch random.below(1000) {
    case 0..<6: isRight = try add()
    case 6..<8: isRight = remove()
    case 8..<20: isRight = turn()
    case 20..<250: isRight = take()
    case 250..<430: isRight = seal()
    case 430..<450: isRight = giveUp()
    case 450..<880: isRight = release()
    case 880..<950: isRight = recycle()
    default: isRight = look()
    }
    return isRight && (random.below(10) > 0 || figuresAgree())
  }

  private func add() throws -> Bool {
    guard areas.count < 5 else { return true }
    let segments = 2 + random.below(40)
    let priority = Int32(random.below(3) - 1)
    guard let number = try table.add(bytes: segments * AreaPlace.segmentBytes, priority: priority, identity: random.next())
    else { return check(false, "no number") }
    guard check(areas[number] == nil, "a number twice") else { return false }
    areas[number] = Area(segments: segments, priority: priority)
    return true
  }

  private func remove() -> Bool {
    let idle = areas.filter { $0.value.used.allSatisfy { $0.value == .empty } }.keys.sorted()
    guard let number = idle.randomElement(using: &random) else { return true }
    table.remove(number)
    areas[number] = nil
    removals += 1
    return check(table.rotation(number) == .none, "removed, and in rotation")
  }

  private func any() -> Int? { areas.keys.sorted().randomElement(using: &random) }

  private func turn() -> Bool {
    guard let number = any() else { return true }
    let rotation: AreaTable.Rotation = [.active, .active, .draining, .faulty][random.below(4)]
    table.setRotation(number, rotation)
    areas[number]!.rotation = rotation
    return true
  }

  private func take() -> Bool {
    let cleaning = random.below(4) == 0
    let possible = areas.filter { $0.value.rotation == .active && $0.value.free > (cleaning ? 0 : 1) }
    let best = possible.min { ($0.value.priority, -$0.value.turn) > ($1.value.priority, -$1.value.turn) }
    let hasRoom = areas.contains { $0.value.rotation == .active && ($0.value.free > 1 || !$0.value.empties.isEmpty) }
    guard check(table.hasRoom == hasRoom, "hasRoom") else { return false }
    guard let (number, segment) = table.takeSegment(cleaning: cleaning) else { return check(best == nil, "none taken") }
    guard
      check(
        best != nil && areas[number]?.turn == best?.value.turn && areas[number]?.priority == best?.value.priority, "whose turn")
    else { return false }
    turns += 1
    areas[number]!.turn = turns
    guard check(segment > 0 && segment < areas[number]!.segments && areas[number]!.used[segment] == nil, "taken twice")
    else { return false }
    areas[number]!.used[segment] = .open
    let generation = (areas[number]!.generations[segment] ?? 0) + 1
    areas[number]!.generations[segment] = generation
    return check(table.generation(number, segment) == generation, "generation")
  }

  private func open() -> (area: Int, segment: UInt32)? {
    guard let number = any() else { return nil }
    return areas[number]!.used.filter { $0.value == .open }.keys.sorted().randomElement(using: &random).map { (number, $0) }
  }

  private func seal() -> Bool {
    guard let (number, segment) = open() else { return true }
    // The most objects there can be in a segment, now and then.
    let units = random.below(50) == 0 ? [Int](repeating: 1, count: 3640) : (0...random.below(8)).map { _ in 1 + random.below(65) }
    table.seal(number, segment, objects: units.count, units: units.reduce(0, +))
    areas[number]!.used[segment] = .sealed(units)
    return true
  }

  private func giveUp() -> Bool {
    guard let (number, segment) = open() else { return true }
    table.giveUp(number, segment)
    areas[number]!.used[segment] = nil
    return true
  }

  private func release() -> Bool {
    guard let number = any() else { return true }
    let live = areas[number]!.live.sorted { $0.segment < $1.segment }
    guard let (segment, before) = live.randomElement(using: &random) else { return true }
    var units = before
    // Big ones would never become empty otherwise.
    for _ in 0..<max(1, units.count / 20) {
      let taken = units.remove(at: random.below(units.count))
      table.release(
        AreaPlace(area: number, unit: UInt64(segment) * UInt64(AreaPlace.unitsPerSegment) + 1, units: taken))
    }
    if units.isEmpty {
      areas[number]!.used[segment] = .empty
      areas[number]!.empties.append(segment)
    } else {
      areas[number]!.used[segment] = .sealed(units)
    }
    return true
  }

  private func recycle() -> Bool {
    guard let number = any() else { return true }
    let segment = table.nextEmpty(number)
    guard check(segment == areas[number]!.empties.popLast(), "empty ones") else { return false }
    if let segment {
      table.freed(number, segment)
      areas[number]!.used[segment] = nil
    }
    return true
  }

  private func look() -> Bool {
    guard let number = any() else { return true }
    let live = areas[number]!.live.sorted { $0.segment < $1.segment }
    var found: [(UInt32, Int)] = []
    var from: UInt32 = 0
    while let next = table.nextSealed(number, from: from) {
      found.append(next)
      from = next.segment + 1
    }
    guard check(found.map(\.0) == live.map(\.segment) && found.map(\.1) == live.map(\.units.count), "nextSealed") else {
      return false
    }
    let most = random.below(200)
    let count = 1 + random.below(6)
    let sparsest = live.map { $0.units.reduce(0, +) }.filter { $0 <= most }.sorted().prefix(count)
    let sparse = table.sparsest(number, atMost: most, count: count, cursor: &areas[number]!.cursor, looks: 1000)
    let units = sparse.map { one in live.first { $0.segment == one.segment }?.units.reduce(0, +) }
    return check(
      units == Array(sparsest) && sparse.map(\.units) == Array(sparsest) && Set(sparse.map(\.segment)).count == sparse.count,
      "sparsest")
  }

  private func figuresAgree() -> Bool {
    for (number, area) in areas {
      let figures = table.figures(number)
      let live = area.live
      guard
        check(
          figures.liveObjects == live.reduce(0) { $0 + $1.units.count }
            && figures.liveBytes == live.reduce(0) { $0 + $1.units.reduce(0, +) } * AreaPlace.unit
            && figures.usedBytes == area.used.count * AreaPlace.segmentBytes
            && table.freeBytes(number) == area.free * AreaPlace.segmentBytes
            && table.rotation(number) == area.rotation && table.priority(number) == area.priority, "figures")
      else { return false }
    }
    return true
  }
}

/// One writer hands objects to threads that release them.
private final class ReleaseRace: @unchecked Sendable {
  private let table = AreaTable.create()
  private let areas: [Int]
  private let rounds: Int
  private let lock = Lock.create()
  private var places: [AreaPlace] = []
  private let isOver = Atomic<Bool>(false)
  private let wrong = Atomic<Int>(0)

  init(rounds: Int) throws {
    self.rounds = rounds
    let table = table
    areas = try (0..<2).map { try table.add(bytes: 20 * AreaPlace.segmentBytes, priority: 0, identity: UInt64($0))! }
  }

  func destroy() {
    table.destroy()
    lock.destroy()
  }

  func write() {
    var random = SeededRandom(seed: SeededRandom.seed)
    for _ in 0..<rounds {
      recycle()
      guard let (area, segment) = table.takeSegment() else {
        sched_yield()
        continue
      }
      let units = (0...random.below(6)).map { _ in 1 + random.below(65) }
      table.seal(area, segment, objects: units.count, units: units.reduce(0, +))
      let unit = UInt64(segment) * UInt64(AreaPlace.unitsPerSegment) + 7
      lock.lock()
      for count in units { places.append(AreaPlace(area: area, unit: unit, units: count)) }
      lock.unlock()
    }
    isOver.store(true, ordering: .releasing)
  }

  private func recycle() {
    for area in areas {
      while let segment = table.nextEmpty(area) {
        // Nobody else has it, and nothing is alive in it.
        if table.nextSealed(area, from: segment)?.segment == segment { wrong.add(1, ordering: .relaxed) }
        table.freed(area, segment)
      }
    }
  }

  func release(as thread: Int) {
    var random = SeededRandom(seed: SeededRandom.seed &+ UInt64(thread))
    while true {
      let isLast = isOver.load(ordering: .acquiring)
      lock.lock()
      let place = places.isEmpty ? nil : places.remove(at: random.below(places.count))
      lock.unlock()
      if let place {
        table.release(place)
      } else {
        if isLast { return }
        sched_yield()
      }
    }
  }

  func isCleanAfterwards() -> Bool {
    recycle()
    var taken: Set<[Int]> = []
    for area in areas {
      let figures = table.figures(area)
      guard figures.liveObjects == 0, figures.liveBytes == 0, figures.usedBytes == 0 else { return false }
    }
    while let (area, segment) = table.takeSegment(cleaning: true) {
      guard taken.insert([area, Int(segment)]).inserted else { return false }
    }
    return taken.count == 2 * 19 && wrong.load(ordering: .relaxed) == 0
  }
}
