import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

/// The file system, or the disk behind a device, has no room for what is written to an area: that passes.
@Suite struct AreaRoomTests {
  @Test func anAreaWithoutRoomIsTriedAgain() throws {
    let layer = try SlotLayer.create(maximumSlots: 100, cacheFrames: 8, poolReserveBytes: 0, poolLimitBytes: 0)
    defer { layer.destroy() }
    let area = try #require(try layer.areas.add(bytes: 8 * AreaPlace.segmentBytes, priority: 0, identity: 5))
    layer.areas.lackedRoom(area, until: .max)
    #expect(!layer.areas.hasRoom && !layer.areas.hasAmpleRoom && layer.areas.takeSegment() == nil)
    #expect(layer.areas.figures(area).lacksRoom && layer.areas.rotation(area) == .active)
    layer.areas.lackedRoom(area, until: vs_monotonic_ns())
    #expect(layer.areas.hasRoom && layer.areas.figures(area).lacksRoom, "whether there is room by now is not known yet")
    let (_, segment) = try #require(layer.areas.takeSegment())
    layer.areas.seal(area, segment, objects: 1, units: 1)
    #expect(!layer.areas.figures(area).lacksRoom && layer.areas.figures(area).roomErrors == 2)
    layer.areas.release(AreaPlace(area: area, unit: UInt64(segment) * UInt64(AreaPlace.unitsPerSegment) + 1000, units: 1))
  }

  @Test func objectsStayWhereTheyAreWhileThereIsNoRoom() throws {
    let layer = try SlotLayer.create(maximumSlots: 100, cacheFrames: 8, poolReserveBytes: 1 << 20, poolLimitBytes: 1 << 20)
    let (page, content, codec) = (TestPage(), TestPage(), try Codec.create())
    defer {
      page.destroy()
      content.destroy()
      codec.destroy()
      layer.destroy()
    }
    let area = try #require(try layer.areas.add(bytes: 8 * AreaPlace.segmentBytes, priority: 0, identity: 5))
    layer.enableWriteback()
    page.fill(key: 32 | 2)
    let slot = try #require(layer.store(page: page.bytes, target: 1, virtualPage: 7))
    guard case .compressed = layer.compressOldest(codec: codec) else {
      Issue.record("the page is not in the pool")
      return
    }
    let disk = FakeDisk(seed: SeededRandom.seed)
    let writer = SegmentWriter(layer: layer, storage: FakeStorage(disk: disk, depth: 2, seed: SeededRandom.seed), buffers: 0..<2)
    func write() throws -> Bool {
      let oldest = try #require(layer.oldestInPool())
      let (word, length) = try #require(layer.copyFromPool(oldest, into: content.bytes))
      guard writer.append(oldest, from: word, content.bytes, length: length) else {
        layer.putBack(oldest)
        layer.release(oldest)
        return false
      }
      writer.drain()
      return true
    }
    disk.isFull.store(true, ordering: .relaxed)
    #expect(try write() && layer.table.word(slot).kind == .pool && writer.failures == 1)
    #expect(layer.areas.figures(area).writeErrors == 0 && layer.areas.rotation(area) == .active)
    #expect(try !write(), "not at once")
    disk.isFull.store(false, ordering: .relaxed)
    layer.areas.lackedRoom(area, until: vs_monotonic_ns())
    #expect(try write() && layer.table.word(slot).kind == .area && !layer.areas.figures(area).lacksRoom)
    layer.release(slot)
  }
}
