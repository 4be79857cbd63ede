import Glibc
import Synchronization
import Testing

@testable import VSwapDaemon

@Suite struct SwapAreasTests {
  /// The writeback of a full pool does not wait for swapon to end. An area was in the rotation before its file could be found: a writer that took a
  /// segment in between wrote to nothing, and the area was out of order from its first moment.
  @Test func nobodyTakesASegmentOfAnAreaWithoutAFile() throws {
    #if DEBUG
      Interleaving.rarity.store(2, ordering: .relaxed)
      defer { Interleaving.rarity.store(0, ordering: .relaxed) }
    #endif
    let directory = try DiskDirectory()
    defer { withExtendedLifetime(directory) {} }
    let path = directory.path + "/area"
    let (layer, areas) = try makeAreas(NoTargets())
    let writer = try Writer(layer: layer, files: areas.files)
    for _ in 0..<TestScale.rounds(100) {
      let before = writer.taken
      _ = try areas.add(try AreaFile.open(path: path, sizeBytes: 2 << 20, known: []), priority: nil)
      while writer.taken == before { sched_yield() }
      #expect(try areas.swapoff(path: areas.list()[0].path, dryRun: false) { _ in true }.state == .off)
    }
    writer.end()
    #expect(writer.withoutFile == 0)
  }

  /// Who sees that an area has gone may make it anew. It was said to have gone while its file was still there, locked, and about to be removed: a swapon at
  /// that moment adopted that file.
  @Test func anAreaIsListedUntilItsFileHasGone() throws {
    let directory = try DiskDirectory()
    defer { withExtendedLifetime(directory) {} }
    let path = directory.path + "/area"
    let sink = NoTargets()
    let areas = try makeAreas(sink).areas
    _ = try areas.add(try AreaFile.open(path: path, sizeBytes: 2 << 20, known: []), priority: nil)
    var isLooked = false
    sink.whenFilesChange = {
      isLooked = true
      #expect(areas.list().map(\.state) == [.draining])
      #expect(throws: AreaFileError.known) { try AreaFile.open(path: path, sizeBytes: 2 << 20, known: areas.openFiles) }
      #expect(throws: SwapoffError.self) { try areas.swapoff(path: path, dryRun: false) { _ in true } }
    }
    #expect(try areas.swapoff(path: areas.list()[0].path, dryRun: false) { _ in true }.state == .off)
    #expect(isLooked)
    #expect(areas.list().isEmpty && directory.isEmpty)
  }
}

/// Never destroyed, since the writeback's thread runs for as long as the process does.
private func makeAreas(_ sink: NoTargets) throws -> (layer: SlotLayer, areas: SwapAreas) {
  let layer = try SlotLayer.create(
    maximumSlots: 1000, cacheFrames: 16, poolReserveBytes: 1 << 20, poolLimitBytes: 1 << 20)
  let writeback = try Writeback(layer: layer, budget: layer.budget)
  return (layer, SwapAreas(layer: layer, files: .create(), writeback: writeback, sink: sink, log: { _ in }))
}

/// Takes segments all the time and gives them back.
private final class Writer: @unchecked Sendable {
  private let layer: SlotLayer
  private let files: AreaFiles
  private let takenCount = Atomic<Int>(0)
  private let withoutFileCount = Atomic<Int>(0)
  private let isOver = Atomic<Bool>(false)
  private let ended = Promise<Bool>()

  var taken: Int { takenCount.load(ordering: .relaxed) }
  var withoutFile: Int { withoutFileCount.load(ordering: .relaxed) }

  init(layer: SlotLayer, files: AreaFiles) throws(KernelError) {
    self.layer = layer
    self.files = files
    try Thread.start("test-writer") { [self] in
      while !isOver.load(ordering: .relaxed) { takeOne() }
      ended.fulfil(true)
    }
  }

  func end() {
    isOver.store(true, ordering: .relaxed)
    _ = ended.wait()
  }

  private func takeOne() {
    guard let (area, segment) = layer.areas.takeSegment() else { return }
    if files.descriptor(area) < 0 { withoutFileCount.add(1, ordering: .relaxed) }
    takenCount.add(1, ordering: .relaxed)
    layer.areas.giveUp(area, segment)
  }
}

private final class NoTargets: PageSink, @unchecked Sendable {
  var whenFilesChange: () -> Void = {}
  func room(target: UInt32) -> Int { 0 }
  func totalRoom() -> Int { 0 }
  func deliver(_ batch: PageBatch) -> Bool { true }
  func deliverToAll(_ batch: PageBatch) -> Bool { true }
  func dropCopies() {}
  func filesChanged() { whenFilesChange() }
}
