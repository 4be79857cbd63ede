import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct DictionariesTests {
  @Test func trainingPaysOnCommonContent() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    dictionaries.join(target: 5, domain: 5)
    dictionaries.join(target: 6, domain: 5)
    let before = dictionaries.metadataBytes
    let old = try bench.store(0..<100, target: 5)
    let without = bench.layer.statistics().compressedBytes
    // Both targets' pages count; nothing is trained before the samples are complete.
    let samples = Dictionaries.firstSample + (DictionaryTraining.samples - 1) * Dictionaries.sampleInterval
    for number in 100..<samples - 1 { try bench.pass(UInt64(number), target: number % 2 == 0 ? 5 : 6) }
    #expect(!dictionaries.needsAttention && dictionaries.metadataBytes > before + 1 << 19)
    for number in 0..<2 { try bench.pass(UInt64(samples + number), target: 6) }
    #expect(dictionaries.needsAttention)
    dictionaries.attend()
    let figures = try #require(dictionaries.figures(ofTarget: 5))
    #expect(figures.savesPercent > 30 && figures.bytes > DictionaryTraining.samples && figures.bytes < 150_000)
    #expect(dictionaries.figures(ofTarget: 6) == figures && dictionaries.figures(ofTarget: 7) == nil)
    #expect(!dictionaries.needsAttention && dictionaries.metadataBytes <= before + 2 * pageSize + figures.bytes)
    let new = try bench.store(1000..<1100, target: 6)
    let with = bench.layer.statistics().compressedBytes - without
    #expect(Double(with) < Double(without) * 0.7, "\(with) bytes, \(without) without")
    #expect(old.allSatisfy { bench.reads($0) } && new.allSatisfy { bench.reads($0) })
    #expect(bench.number(of: old[0].slot) == 0 && bench.number(of: new[0].slot) == dictionaries.number(forTarget: 5))
  }

  /// Pages with nothing in common get none, and are asked again once, much later.
  @Test func trainingDoesNotPayOnNoise() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    dictionaries.join(target: 9, domain: 9)
    var pages = 0
    for attempt in 0..<3 {
      let last = pages == 0 ? 6000 : 40 * pages
      while pages < last && !dictionaries.needsAttention {
        if pages % 4 == 3 { bench.page.fill(key: UInt64(pages) << 4 | 2) }
        dictionaries.saw(bench.page.bytes, ofTarget: 9)
        pages += 1
      }
      #expect(dictionaries.needsAttention == (attempt < 2), "after \(pages) pages")
      dictionaries.attend()
      #expect(dictionaries.figures(ofTarget: 9) == nil && dictionaries.metadataBytes <= 2 * pageSize)
    }
    #expect(pages > 16 * 5000)
  }

  @Test func objectsComeBackFromEverywhere() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    bench.teach(target: 3, domain: 3)
    var pages = try bench.store(0..<1000, target: 3)
    // Compaction moves what is left.
    for index in 0..<500 { bench.layer.release(pages[index].slot) }
    pages.removeFirst(500)
    for (index, page) in pages.enumerated() where index % 5 != 0 { bench.layer.release(page.slot) }
    pages = pages.enumerated().filter { $0.offset % 5 == 0 }.map(\.element)
    #expect(bench.layer.compact(maximumMoves: 1000) > 0)
    #expect(pages.allSatisfy { bench.reads($0) && bench.number(of: $0.slot) != 0 })
    let area = try bench.toArea(pages.map(\.slot))
    #expect(pages.allSatisfy { bench.layer.table.word($0.slot).kind == .area && bench.reads($0) })
    #expect(try bench.swapoff(area).run(workers: 2) { _ in true })
    bench.layer.areas.remove(area)
    #expect(pages.allSatisfy { bench.layer.table.word($0.slot).kind == .pool && bench.reads($0) })
  }

  @Test func aRetiredDictionaryStaysWhileItIsUsed() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    let before = dictionaries.metadataBytes
    bench.teach(target: 3, domain: 3)
    let number = dictionaries.number(forTarget: 3)
    let dictionary = try #require(dictionaries.borrow(number))
    bench.content.fill(bench.page, key: 1)
    let packed = try #require(bench.codec.compress(bench.page.bytes, with: dictionary))
    dictionaries.end(domain: 3, targets: [3])
    #expect(dictionaries.borrow(number) == nil && dictionaries.number(forTarget: 3) == 0)
    #expect(dictionaries.needsAttention)
    dictionaries.attend()
    #expect(dictionaries.metadataBytes > before + 50_000)
    #expect(bench.codec.decompress(packed.bytes, length: packed.length, into: bench.page.bytes, with: dictionary))
    #expect(bench.content.isContent(of: bench.page, key: 1))
    dictionaries.giveBack(number)
    dictionaries.attend()
    #expect(!dictionaries.needsAttention && dictionaries.metadataBytes <= before + pageSize)
  }

  @Test func numbersAreUsedAgainAndBounded() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    for round in 1...3 {
      bench.teach(target: UInt32(round), domain: UInt32(round))
      #expect(dictionaries.number(forTarget: UInt32(round)) == 1)
      dictionaries.end(domain: UInt32(round), targets: [UInt32(round)])
      #expect(!dictionaries.needsAttention)
    }
    for target in 1...UInt32(Dictionaries.capacity) {
      bench.teach(target: target, domain: target)
      #expect(dictionaries.number(forTarget: target) == target)
    }
    bench.teach(target: 100, domain: 100)
    #expect(dictionaries.number(forTarget: 100) == 0 && !dictionaries.needsAttention)
    dictionaries.end(domain: 7, targets: [7])
    bench.teach(target: 101, domain: 101)
    #expect(dictionaries.number(forTarget: 101) == 7)
  }

  /// A target's number says nothing about who needs an object: that is told by the object, and by who keeps the dictionary.
  @Test func anOwnerThatHasGoneDoesNoHarm() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    bench.teach(target: 3, domain: 3)
    dictionaries.join(target: 4, domain: 3)
    // The parent's page, shared with its child 4, is compressed after the parent has gone.
    bench.content.fill(bench.page, key: 77)
    let slot = try #require(bench.layer.store(page: bench.page.bytes, target: 3, virtualPage: 1))
    #expect(bench.layer.compressOldest(codec: bench.codec) == .compressed)
    #expect(bench.number(of: slot) == dictionaries.number(forTarget: 4) && bench.reads((slot, 77)))
    // Nobody's page any more, but a worker still has a reference: it gets nothing, and nothing is left when it gives that back.
    dictionaries.end(domain: 3, targets: [3, 4])
    #expect(bench.layer.load(slot, into: bench.page.bytes, codec: bench.codec) == .lost)
    bench.layer.release(slot)
    #expect(bench.layer.statistics().lostPages == 0 && bench.layer.statistics().slotsInUse == 0)
  }

  @Test func aCollectionThatEndsInBetweenLeavesNothing() throws {
    let bench = try Bench()
    defer { bench.destroy() }
    let dictionaries = bench.layer.dictionaries
    dictionaries.join(target: 3, domain: 3)
    bench.content.show(to: dictionaries, target: 3, page: bench.page)
    #expect(dictionaries.needsAttention)
    dictionaries.end(domain: 3, targets: [3])
    #expect(!dictionaries.needsAttention && dictionaries.metadataBytes <= 2 * pageSize)
    dictionaries.attend()
    #expect(dictionaries.number(forTarget: 3) == 0)
  }
}

/// A slot layer with what one thread needs to use it, and pages that have much in common.
private final class Bench: PageSink, @unchecked Sendable {
  typealias Page = (slot: SlotNumber, key: UInt64)

  let layer: SlotLayer
  let codec = try! Codec.create()
  let page = TestPage()
  let content = CommonContent(seed: 11)
  private let disk = FakeDisk(seed: 1)
  private let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)

  init() throws {
    layer = try SlotLayer.create(maximumSlots: 2000, cacheFrames: 8, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 26)
  }

  func destroy() {
    layer.destroy()
    codec.destroy()
    page.destroy()
    content.destroy()
    buffer.deallocate()
  }

  /// Stores and compresses a page for each key.
  func store(_ keys: Range<UInt64>, target: UInt32) throws -> [Page] {
    try keys.map { key in
      content.fill(page, key: key)
      let slot = try #require(layer.store(page: page.bytes, target: target, virtualPage: key))
      #expect(layer.compressOldest(codec: codec) == .compressed)
      return (slot, key)
    }
  }

  /// A page that comes and goes.
  func pass(_ key: UInt64, target: UInt32) throws {
    for page in try store(key..<key + 1, target: target) { layer.release(page.slot) }
  }

  /// Gives a domain its dictionary, if there is room for one.
  func teach(target: UInt32, domain: UInt32) {
    layer.dictionaries.join(target: target, domain: domain)
    content.show(to: layer.dictionaries, target: target, page: page)
    layer.dictionaries.attend()
  }

  /// The dictionary that the slot's object in the pool names.
  func number(of slot: SlotNumber) -> UInt32 {
    let word = layer.table.word(slot)
    return Codec.dictionary(of: layer.pool.bytes(word.poolOffset), length: word.poolLength)
  }

  func reads(_ wanted: Page) -> Bool {
    switch layer.load(wanted.slot, into: page.bytes, codec: codec) {
    case .zero, .cached, .pool: break
    case .lost: return false
    case .area(let word):
      let place = word.place
      let start = Int(place.segment) * AreaPlace.segmentBytes
      guard disk.read(area: place.area, offset: start, length: AreaPlace.segmentBytes, into: buffer),
        let found = layer.content(of: buffer + (place.offset - start), wanted.slot, word),
        layer.unpack(found, into: page.bytes, codec: codec)
      else { return false }
    }
    return content.isContent(of: page, key: wanted.key)
  }

  /// Moves slots to a new area, which is to be emptied next.
  func toArea(_ slots: [SlotNumber]) throws -> Int {
    let area = try #require(try layer.areas.add(bytes: 20 * AreaPlace.segmentBytes, priority: 0, identity: 77))
    let writer = SegmentWriter(layer: layer, storage: FakeStorage(disk: disk, depth: 1, seed: 1), buffers: 0..<1)
    for slot in slots {
      #expect(layer.retain(slot))
      let (word, length) = try #require(layer.copyFromPool(slot, into: buffer))
      #expect(writer.append(slot, from: word, buffer, length: length))
    }
    writer.drain()
    layer.areas.setRotation(area, .draining)
    return area
  }

  func swapoff(_ area: Int) throws -> Swapoff {
    try Swapoff(layer: layer, area: area, storage: FakeStorage(disk: disk, depth: 4, seed: 5), writing: nil, sink: self)
  }

  func room(target: UInt32) -> Int { 0 }
  func totalRoom() -> Int { 0 }
  func deliver(_ batch: PageBatch) -> Bool { true }
  func deliverToAll(_ batch: PageBatch) -> Bool { true }
  func filesChanged() {}
  func dropCopies() {}
}
