import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

@Suite(.serialized) struct AreaModelTests {
  /// Many short lives of a slot layer with areas: nothing is ever wrong; nothing is lost but what was damaged on its disk; all counters
  /// agree; at the end everything comes back.
  @Test(arguments: [Weather.fair, .rough, .stormy]) func everyPageReadsBackOrWasDamaged(weather: Weather) throws {
    var sum = AreaModel.Events()
    for round in 0..<TestScale.rounds(15) {
      let seed = SeededRandom.seed &+ UInt64(round)
      let model = try AreaModel(seed: seed, weather: weather)
      var step = 0
      while model.complaint == nil, step < 3000 {
        try model.step()
        step += 1
      }
      if model.complaint == nil { model.leave() }
      if let complaint = model.complaint {
        model.settle()
        Issue.record("\(complaint) (\(weather), step \(step), VSWAP_SEED=\(seed), round 0)")
        return
      }
      sum.add(model.events)
      model.destroy()
    }
    print("\(weather): \(sum)")
    // Too short to say.
    guard TestScale.factor >= 1 else { return }
    #expect(sum.written > 0 && sum.cleaned > 0 && sum.swapoffs > 0 && sum.cancelled > 0)
    #expect(sum.reused > 0)
    #expect(sum.toTarget > 0 && sum.toPool > 0 && sum.toAreas > 0 && sum.toAll > 0)
    #expect(weather == .fair ? sum.lost == 0 : sum.readErrors > 0)
    #expect(weather != .stormy || sum.lost > 0)
  }
}

enum Weather: Sendable {
  case fair
  /// Operations fail, but what is on the disk is right.
  case rough
  /// Disks rot, lie and are overwritten, too.
  case stormy
}

/// A slot layer with areas on a fake disk, beside a plain dictionary of what its slots should hold.
private final class AreaModel: @unchecked Sendable {
  struct Events {
    var written = 0
    var cleaned = 0
    var loads = 0
    var fromAreas = 0
    var lost = 0
    var readErrors = 0
    var swapoffs = 0
    var cancelled = 0
    var refused = 0
    var toTarget = 0
    var toPool = 0
    var toAreas = 0

    /// Shared by several.
    var toAll = 0
    /// Clean copies that pages came back to.
    var reused = 0

    mutating func add(_ other: Events) {
      written += other.written
      cleaned += other.cleaned
      loads += other.loads
      fromAreas += other.fromAreas
      lost += other.lost
      readErrors += other.readErrors
      swapoffs += other.swapoffs
      cancelled += other.cancelled
      refused += other.refused
      toTarget += other.toTarget
      toPool += other.toPool
      toAreas += other.toAreas
      toAll += other.toAll
      reused += other.reused
    }
  }

  private struct Page {
    var key: UInt64
    var references = 1
    var target: UInt32
    var virtualPage: UInt64
    var isLost = false
  }

  let layer: SlotLayer
  private let weather: Weather
  private let budget: FrameBudget
  private let writeback: Writeback
  private let writing: FakeStorage
  private let cleaning: FakeStorage
  private var work: Writeback.Work
  private let disk: FakeDisk
  private var random: SeededRandom
  private var areas: [Int] = []
  private var draining: Int?
  /// Where slots lay when something began that may lose many: `swapoff`, `clean`.
  private var before: [SlotNumber: AreaPlace]?
  private var nextKey: UInt64 = 1
  private var growing = true
  private let page = TestPage()
  private let scratch = TestPage()
  private let buffer = UnsafeMutableRawPointer.allocate(byteCount: 3 * pageSize, alignment: pageSize)
  private let codec = try! Codec.create()

  /// Over `pages`, `events` and `complaint`: the sink is called by swapoff's workers.
  private let lock = Lock.create()
  private var pages: [SlotNumber: Page] = [:]
  private(set) var events = Events()
  private(set) var complaint: String?
  fileprivate var sinkMood = 0
  private let sinkPage = TestPage()
  private let sinkScratch = TestPage()

  private static let slots = 1500
  private static let frames = 48

  init(seed: UInt64, weather: Weather) throws {
    random = SeededRandom(seed: seed)
    self.weather = weather
    layer = try SlotLayer.create(
      maximumSlots: Self.slots, cacheFrames: Self.frames, poolReserveBytes: 1 << 26,
      poolLimitBytes: 12 * CompressedPool.blockSize)
    budget = layer.budget
    writeback = try Writeback(layer: layer, budget: budget)
    var rates = FaultRates()
    if weather != .fair {
      rates.failedReads = 100
      rates.failedWrites = 60
    }
    if weather == .stormy { rates.lostWrites = 60 }
    disk = FakeDisk(seed: random.next(), rates: rates)
    writing = FakeStorage(disk: disk, depth: 1 + random.below(4), seed: random.next())
    cleaning = FakeStorage(disk: disk, depth: 1, seed: random.next())
    work = Writeback.Work(layer: layer, writing: writing, cleaning: cleaning)
    try addArea()
    layer.enableWriteback()
  }

  func destroy() {
    layer.destroy()
    lock.destroy()
    for page in [page, scratch, sinkPage, sinkScratch] { page.destroy() }
    buffer.deallocate()
    codec.destroy()
  }

  private func complain(_ what: String) {
    lock.lock()
    if complaint == nil { complaint = what }
    lock.unlock()
  }

  private func anyPage() -> SlotNumber? {
    // A dictionary's own order differs from run to run.
    lock.lock()
    defer { lock.unlock() }
    for _ in 0..<40 {
      let slot = SlotNumber(1 + random.below(Self.slots))
      if pages[slot] != nil { return slot }
    }
    return nil
  }

  // MARK: Steps

  func step() throws {
    if random.below(700) == 0 { growing.toggle() }
    switch random.below(1000) {
    case 0..<2: try addArea()
    case 2..<6: try swapoff()
    case 6..<30: clean()
    case 30..<60: recycle()
    case 60..<62:
      settle()
      check()
      checkAllPages()
    case 62..<70: if weather == .stormy, let area = areas.randomElement(using: &random) { disk.harm(area: area) }
    case 70..<72:
      // Somebody repaired the disk.
      for area in areas where area != draining && layer.areas.rotation(area) == .faulty { layer.areas.setRotation(area, .active) }
    default: pageStep()
    }
    if random.below(40) == 0 { check() }
  }

  /// What programs and workers do, while a swapoff runs as well.
  private func pageStep() {
    switch random.below(100) {
    case 0..<30: for _ in 0...random.below(10) { growing ? store() : release() }
    case 30..<38: for _ in 0...random.below(6) { release() }
    case 38..<50: compress()
    case 50..<58: writeSome()
    case 58..<62: work.writer.poll()
    case 62: work.writer.flush()
    case 63: _ = layer.compact(maximumMoves: 1 + random.below(30))
    case 64:
      // As much as the daemon does at a time.
      budget.poolFull = random.below(2) == 0
      _ = writeback.writeSome(&work)
    case 65: if random.below(30) == 0 { layer.setPoolLimit(bytes: (4 + random.below(24)) * CompressedPool.blockSize) }
    case 66..<72: retain()
    case 72..<80: comeBack()
    default: if let slot = anyPage() { load(slot) }
    }
  }

  private func addArea() throws {
    guard areas.count < 3 else { return }
    let segments = 4 + random.below(8)
    guard
      let area = try layer.areas.add(
        bytes: segments * AreaPlace.segmentBytes, priority: Int32(random.below(2)), identity: random.next())
    else { return complain("no room for an area") }
    if areas.contains(area) { complain("an area's number twice") }
    areas.append(area)
  }

  private func store() {
    nextKey += 1
    let key = nextKey << 4 | random.next() & 15
    let target = UInt32(random.below(4))
    page.fill(key: key)
    guard let slot = layer.store(page: page.bytes, target: target, virtualPage: nextKey) else { return compress() }
    lock.lock()
    if pages[slot] != nil { complaint = "a slot twice" }
    pages[slot] = Page(key: key, target: target, virtualPage: nextKey)
    lock.unlock()
  }

  private func compress() {
    for _ in 0..<1 + random.below(8) {
      switch layer.compressOldest(codec: codec) {
      case .compressed, .stale: continue
      case .nothing: return
      case .poolFull: return writeSome()
      }
    }
  }

  private func writeSome() {
    for _ in 0..<1 + random.below(60) {
      guard let slot = layer.oldestInPool() else { return }
      guard let (word, length) = layer.copyFromPool(slot, into: work.page) else {
        layer.release(slot)
        continue
      }
      guard work.writer.append(slot, from: word, work.page, length: length) else {
        layer.putBack(slot)
        layer.release(slot)
        return
      }
    }
  }

  private func retain() {
    guard let slot = anyPage() else { return }
    lock.lock()
    // The sink may have taken it.
    if pages[slot] != nil, layer.retain(slot) { pages[slot]!.references += 1 }
    lock.unlock()
  }

  /// A page is mapped and leaves again, changed or not. The model has no room for the changed one: it is given up, as after the attempt.
  private func comeBack() {
    guard let slot = anyPage() else { return }
    lock.lock()
    guard let expected = pages[slot], !expected.isLost, layer.retain(slot) else { return lock.unlock() }
    lock.unlock()
    defer { layer.release(slot) }
    page.fill(key: expected.key)
    guard layer.keepCopy(slot, of: page.bytes) else { return }
    let isChanged = random.below(4) == 0
    if isChanged { page.fill(key: expected.key &+ 16) }
    if layer.evictCopy(slot, page: page.bytes, target: expected.target, virtualPage: expected.virtualPage) {
      if isChanged { complain("slot \(slot) passes for what it is not") }
      events.reused += 1
    } else {
      layer.countCopies(-1)
    }
  }

  private func release() {
    guard let slot = anyPage() else { return }
    lock.lock()
    guard let page = pages[slot] else { return lock.unlock() }
    pages[slot]!.references -= 1
    if page.references == 1 { pages[slot] = nil }
    // Under the lock, since the sink must not find a page that is on its way out.
    layer.release(slot)
    lock.unlock()
  }

  /// Reads a page as a pager does.
  private func load(_ slot: SlotNumber) {
    lock.lock()
    // Held for as long as it takes: the sink may take it away otherwise.
    guard let expected = pages[slot], layer.retain(slot) else { return lock.unlock() }
    events.loads += 1
    lock.unlock()
    defer { layer.release(slot) }
    var hasFailed = false
    while true {
      switch layer.load(slot, into: page.bytes, codec: codec) {
      case .zero, .cached, .pool:
        if expected.isLost { return complain("slot \(slot) was lost, and is back") }
        if !page.holds(key: expected.key, scratch: scratch) { complain("slot \(slot) is wrong") }
        return
      case .lost:
        if !expected.isLost && !hasFailed { noteLoss(slot) }
        return
      case .area(let word):
        switch readObject(slot, word) {
        case .right:
          if !page.holds(key: expected.key, scratch: scratch) { complain("slot \(slot) is wrong, from its area") }
          return
        case .failed: hasFailed = true
        case .damaged:
          if layer.table.isStill(slot, word), !disk.isDamaged(word.place) { return complain("slot \(slot) was refused") }
          hasFailed = true
        }
        layer.loseInArea(slot, word)
        guard layer.table.word(slot).kind == .lost else { continue }
        lock.lock()
        pages[slot]?.isLost = true
        events.lost += 1
        lock.unlock()
      }
    }
  }

  private enum Reading {
    case right
    case failed
    case damaged
  }

  private func readObject(_ slot: SlotNumber, _ word: SlotWord) -> Reading {
    let place = word.place
    lock.lock()
    events.fromAreas += 1
    lock.unlock()
    let begin = place.offset & ~(pageSize - 1)
    let end = (place.offset + place.bytes + pageSize - 1) & ~(pageSize - 1)
    guard disk.read(area: place.area, offset: begin, length: end - begin, into: buffer) else { return .failed }
    guard let content = layer.content(of: buffer + (place.offset - begin), slot, word),
      layer.unpack(content, into: page.bytes, codec: codec)
    else { return .damaged }
    return .right
  }

  // MARK: Work on areas

  private func snapshot() {
    before = [:]
    for slot in pages.keys {
      let backing = backing(layer.table.word(slot))
      if backing.kind == .area { before![slot] = backing.place }
    }
  }

  /// What a word names: for a page in the cache that has a clean copy, where that is.
  private func backing(_ word: SlotWord) -> SlotWord {
    word.kind == .cached ? layer.cache.beneath(word.frame) ?? word : word
  }

  /// Somebody else than `load` lost a page: rightly?
  private func noteLoss(_ slot: SlotNumber) {
    lock.lock()
    if pages[slot] != nil {
      pages[slot]!.isLost = true
      events.lost += 1
    }
    lock.unlock()
    guard let place = before?[slot] else { return complain("slot \(slot) was lost without a reason") }
    if !disk.isDamaged(place) { complain("slot \(slot) was lost from a place that is intact") }
  }

  private func noteLosses() {
    for (slot, page) in pages where !page.isLost && layer.table.word(slot).kind == .lost { noteLoss(slot) }
    before = nil
  }

  private func clean() {
    guard before == nil, let area = areas.randomElement(using: &random), layer.areas.rotation(area) == .active else { return }
    snapshot()
    if weather == .stormy {
      // Each just once, so that we know where everything was.
      let sparse = layer.areas.sparsest(
        area, atMost: Writeback.sparseUnits, count: 1 + random.below(3), cursor: &work.cursors[area], looks: 1024)
      for (segment, _) in sparse where writeback.clean(area, segment, &work) { events.cleaned += 1 }
      work.writer.drain()
    } else {
      let writes = disk.writes
      writeback.clean(&work)
      events.cleaned += disk.writes - writes
    }
    noteLosses()
  }

  private func recycle() {
    writeback.recycle(&work, discarding: random.below(2) == 0)
  }

  private func swapoff() throws {
    guard draining == nil, let area = areas.randomElement(using: &random) else { return }
    draining = area
    let rotation = layer.areas.rotation(area)
    layer.areas.setRotation(area, .draining)
    // What `Writeback.barrier` waits for.
    work.writer.drain()
    snapshot()
    sinkMood = random.below(4)
    let reading = FakeStorage(disk: disk, depth: 1 + random.below(8), seed: random.next(), longestDelay: 3)
    let other = random.below(3) == 0 ? nil : FakeStorage(disk: disk, depth: 1 + random.below(2), seed: random.next())
    let swapoff = try Swapoff(layer: layer, area: area, storage: reading, writing: other, sink: self)
    swapoff.interval = 0
    swapoff.patience = 10_000_000
    let patience = random.below(2) == 0 ? random.below(20) : .max
    var questions = 0
    let taken = events.toTarget
    if random.below(2) == 0 { layer.setPoolLimit(bytes: layer.pool.arenaBytes) }
    let isEmpty = try swapoff.run(workers: 1 + random.below(3)) { _ in
      questions += 1
      // A room that is short for ever would make it go round for ever.
      for _ in 0..<random.below(4) { pageStep() }
      return questions < patience && questions < 20_000 && complaint == nil
    }
    noteLosses()
    let tally = swapoff.tally
    if tally.toTarget < events.toTarget - taken { complain("swapoff counted \(tally.toTarget) to targets") }
    events.toPool += tally.toPool
    events.toAreas += tally.toAreas
    draining = nil
    layer.setPoolLimit(bytes: (4 + random.below(16)) * CompressedPool.blockSize)
    if questions >= 20_000 { complain("swapoff does not end") }
    if isEmpty {
      retire(area)
    } else {
      if questions >= patience { events.cancelled += 1 } else { events.refused += 1 }
      layer.areas.setRotation(area, rotation)
    }
    check()
    if areas.isEmpty { try addArea() }
  }

  private func retire(_ area: Int) {
    events.swapoffs += 1
    let figures = layer.areas.figures(area)
    events.readErrors += figures.readErrors
    if figures.liveObjects != 0 || figures.liveBytes != 0 || layer.areas.nextSealed(area, from: 1) != nil {
      complain("an area that is off has \(figures.liveObjects) objects")
    }
    for slot in pages.keys {
      let word = backing(layer.table.word(slot))
      if word.kind == .area && word.place.area == area { complain("slot \(slot) lies in an area that is off") }
    }
    layer.areas.remove(area)
    disk.remove(area: area)
    areas.removeAll { $0 == area }
  }

  // MARK: Checks

  /// Nothing is being written any more.
  func settle() {
    work.writer.drain()
    recycle()
  }

  /// What must hold whenever no swapoff runs.
  private func check() {
    guard draining == nil else { return }
    var kinds: [SlotWord.Kind: Int] = [:]
    var covered = 0
    var objects: [Int: Int] = [:]
    var units: [Int: Int] = [:]
    var segments: [Int: Set<UInt32>] = [:]
    for (slot, page) in pages {
      let word = layer.table.word(slot)
      let backing = backing(word)
      kinds[word.kind, default: 0] += 1
      if word.kind == .cached && backing.kind == .pool { covered += 1 }
      if page.isLost != (word.kind == .lost) { complain("slot \(slot) is \(word.kind), isLost is \(page.isLost)") }
      guard backing.kind == .area else { continue }
      let place = backing.place
      objects[place.area, default: 0] += 1
      units[place.area, default: 0] += place.units
      segments[place.area, default: []].insert(place.segment)
    }
    // Pages that were released while they are being written count until that is over.
    guard work.writer.isIdle else { return }
    let figures = layer.statistics()
    let seen = [figures.slotsInUse, figures.objects, figures.cachedPages, figures.zeroPages, figures.lostPages]
    let wanted = [
      pages.count, kinds[.pool, default: 0] + covered, kinds[.cached, default: 0], kinds[.zero, default: 0],
      kinds[.lost, default: 0],
    ]
    if seen != wanted { complain("slots, objects, cached, zero, lost are \(seen), not \(wanted)") }
    if layer.freeFrames != Self.frames - kinds[.cached, default: 0] { complain("frames were lost") }
    recycle()
    for area in areas {
      let figures = layer.areas.figures(area)
      let seen = [figures.liveObjects, figures.liveBytes / AreaPlace.unit, figures.usedBytes / AreaPlace.segmentBytes]
      let wanted = [objects[area, default: 0], units[area, default: 0], segments[area, default: []].count]
      if seen != wanted { complain("objects, units, segments of area \(area) are \(seen), not \(wanted)") }
    }
  }

  private func checkAllPages() {
    for slot in pages.keys.sorted() { load(slot) }
  }

  /// Everything is read once more, and given back.
  func leave() {
    settle()
    check()
    checkAllPages()
    for (slot, page) in pages { for _ in 0..<page.references { layer.release(slot) } }
    pages = [:]
    settle()
    check()
    for area in areas {
      let figures = layer.areas.figures(area)
      events.readErrors += figures.readErrors
      if figures.liveObjects != 0 || figures.usedBytes != 0 || layer.areas.freeBytes(area) != layer.areas.bytes(area) {
        complain("area \(area) is not empty at the end")
      }
    }
    let figures = layer.statistics()
    if figures.slotsInUse != 0 || figures.objects != 0 || figures.arenaBytes != 0 || figures.lostPages != 0 {
      complain("the layer is not empty at the end")
    }
    events.written = disk.writes
  }
}

extension AreaModel: PageSink {
  func room(target: UInt32) -> Int { sinkMood == 0 ? 0 : sinkMood == 1 ? Int(target) * 5 : 1000 }
  func totalRoom() -> Int { .max }
  func filesChanged() {}
  func dropCopies() {}

  func deliver(_ batch: PageBatch) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    for index in batch.items.indices {
      let item = batch.items[index]
      // Some targets are stopped; and the program may have given the page up, or shared it.
      if sinkMood == 2 && item.slot % 3 == 0 { continue }
      guard let page = pages[item.slot], page.references == 1 else { continue }
      // Like any target: what a read of its own failed to bring meanwhile was lost.
      guard layer.table.isStill(item.slot, item.word) else { continue }
      memcpy(sinkPage.bytes, batch.content + index * pageSize, pageSize)
      if page.target != batch.target || page.virtualPage != item.page {
        complaint = "slot \(item.slot) went to the wrong target"
      } else if page.isLost {
        complaint = "slot \(item.slot) was lost, and went to its target"
      } else if !sinkPage.holds(key: page.key, scratch: sinkScratch) {
        complaint = "slot \(item.slot) is wrong, by swapoff"
      }
      pages[item.slot] = nil
      events.toTarget += 1
      layer.release(item.slot)
      batch.items[index].isTaken = true
    }
    return true
  }
  func deliverToAll(_ batch: PageBatch) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    let slot = batch.items[0].slot
    if !batch.isShared || batch.items.count != 1 { complaint = "no batch for all" }
    guard sinkMood != 2, let page = pages[slot], layer.table.isStill(slot, batch.items[0].word) else { return true }
    memcpy(sinkPage.bytes, batch.content, pageSize)
    if page.isLost {
      complaint = "slot \(slot) was lost, and went to all"
    } else if !sinkPage.holds(key: page.key, scratch: sinkScratch) {
      complaint = "slot \(slot) is wrong, for all"
    }
    // Those that are stopped keep it.
    let count = slot % 5 == 0 ? 1 : page.references
    for _ in 0..<count { layer.release(slot) }
    if count == page.references { pages[slot] = nil } else { pages[slot]!.references -= count }
    events.toAll += 1
    return true
  }
}
