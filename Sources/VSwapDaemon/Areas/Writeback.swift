import CUserfault
import Glibc

/// The thread that moves the oldest objects of a full pool to swap areas, and keeps those in order: frees segments in which nothing
/// is alive, and cleans sparse ones, as a log-structured file system does (Rosenblum & Ousterhout, SOSP 1991).
///
/// `nudge` and `barrier` may come from any thread. It yields to programs: nice 5.
final class Writeback: @unchecked Sendable {
  private let layer: SlotLayer
  private let budget: FrameBudget
  private let bell: Int32
  private let lock = Lock.create()
  private var barriers: [Promise<Bool>] = []
  /// Set before the start: what to tell when room was made.
  var whenRoom: @Sendable () -> Void = {}

  private static let writeDepth = 4
  /// Objects between two looks at the pool.
  private static let batch = 128
  /// A segment is worth cleaning if at most this much of it is alive.
  static let sparseUnits = AreaPlace.unitsPerSegment * 5 / 8
  /// What certainly fits into a segment beside its reverse map, since the last object of up to 65 units may not.
  private static let usableUnits = AreaPlace.unitsPerSegment * 7 / 8

  init(layer: SlotLayer, budget: FrameBudget) throws(KernelError) {
    self.layer = layer
    self.budget = budget
    bell = vs_eventfd()
    guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
  }

  deinit {
    close(bell)
    lock.destroy()
  }

  func start(files: AreaFiles) throws(KernelError) {
    let writing = try UringStorage(files: files, depth: Self.writeDepth)
    let cleaning = try UringStorage(files: files, depth: 1)
    try Thread.start("vswap-writeback") { [self] in
      vs_yield_to_programs(5)
      run(Work(layer: layer, writing: writing, cleaning: cleaning))
    }
  }

  /// The pool is filling, or an area came.
  func nudge() { _ = vs_eventfd_signal(bell) }

  /// Returns when nothing is being written any more to areas that left the rotation before the call, and files that were closed before
  /// it are let go of.
  func barrier() {
    let promise = Promise<Bool>()
    lock.lock()
    barriers.append(promise)
    lock.unlock()
    nudge()
    _ = promise.wait()
  }

  /// What the thread has to itself. A test makes one with storages of its own, and takes the steps below one by one.
  struct Work {
    let writer: SegmentWriter
    let cleaning: any SegmentStorage
    let page = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
    var cursors = [UInt32](repeating: 0, count: AreaPlace.maximumAreas)
    /// Segments that cleaning could not read, until they are empty.
    var unreadable = [Set<UInt32>](repeating: [], count: AreaPlace.maximumAreas)
    var sweptAt: UInt64 = 0
    var wroteAt: UInt64 = 0

    init(layer: SlotLayer, writing: any SegmentStorage, cleaning: any SegmentStorage) {
      writer = SegmentWriter(layer: layer, storage: writing, buffers: 0..<writing.depth)
      self.cleaning = cleaning
    }
  }

  private func run(_ start: Work) {
    var work = start
    while true {
      if vs_wait_readable(bell, 200_000) != 0 { vs_eventfd_clear(bell) }
      work.writer.refresh()
      work.cleaning.refresh()
      answerBarriers(&work)
      round(&work)
    }
  }

  /// All there is to do after one ring of the bell.
  func round(_ work: inout Work) {
    recycle(&work, discarding: !isPressed)
    var hasWritten = false
    while isPressed, !hasBarrier, writeSome(&work) {
      recycle(&work, discarding: false)
      hasWritten = true
    }
    if budget.poolFull { work.writer.flush() }
    work.writer.drain(flushing: false)
    clean(&work)
    if hasWritten {
      work.wroteAt = vs_monotonic_ns()
      whenRoom()
    } else if vs_monotonic_ns() - work.wroteAt > 1_000_000_000 {
      work.writer.abandonOpen()
    }
  }

  private var hasBarrier: Bool {
    lock.lock()
    defer { lock.unlock() }
    return !barriers.isEmpty
  }

  private func answerBarriers(_ work: inout Work) {
    lock.lock()
    let waiting = barriers
    barriers = []
    lock.unlock()
    guard !waiting.isEmpty else { return }
    work.writer.drain()
    for promise in waiting { promise.fulfil(true) }
  }

  /// The pool is at its limit, or within a sixteenth of it.
  private var isPressed: Bool {
    budget.poolFull || layer.pool.isNearLimit
  }

  /// Moves a batch of objects. false: there is none, or no room for them.
  func writeSome(_ work: inout Work) -> Bool {
    guard layer.areas.hasRoom else { return false }
    for _ in 0..<Self.batch {
      guard let slot = layer.oldestInPool() else { return findLost(&work) }
      guard let (word, length) = layer.copyFromPool(slot, into: work.page) else {
        layer.release(slot)
        continue
      }
      guard work.writer.append(slot, from: word, work.page, length: length) else {
        layer.putBack(slot)
        layer.release(slot)
        return false
      }
    }
    work.writer.poll()
    // Gaps that objects left become room for others once their blocks are empty.
    if layer.pool.compressedBytes < layer.pool.arenaBytes / 4 * 3 { _ = layer.compact(maximumMoves: 64) }
    whenRoom()
    return true
  }

  /// The order knows nobody, and the pool is full all the same: it lost some. At most every second.
  private func findLost(_ work: inout Work) -> Bool {
    let now = vs_monotonic_ns()
    work.writer.flush()
    guard now - work.sweptAt > 1_000_000_000, layer.pool.objects > 0 else { return false }
    work.sweptAt = now
    layer.enqueuePool()
    return true
  }

  /// Empty segments become free; where that is wanted their storage goes back while nobody waits for it to be used again.
  func recycle(_ work: inout Work, discarding: Bool) {
    // Their numbers may come again.
    for area in 0..<AreaPlace.maximumAreas where !work.unreadable[area].isEmpty && layer.areas.rotation(area) == .none {
      work.unreadable[area] = []
    }
    for area in 0..<AreaPlace.maximumAreas where layer.areas.rotation(area) != .none && layer.areas.rotation(area) != .draining {
      while let segment = layer.areas.nextEmpty(area) {
        if discarding { work.cleaning.discard(area: area, segment: segment) }
        work.unreadable[area].remove(segment)
        layer.areas.freed(area, segment)
      }
    }
  }

  /// Sparse segments of areas of which less than an eighth is free: what is alive in several of them goes into fewer.
  func clean(_ work: inout Work) {
    for area in 0..<AreaPlace.maximumAreas where layer.areas.rotation(area) == .active {
      // Each turn frees one at least; an area that is used at the same time gets the next ones at the next ring.
      for _ in 0..<4 where layer.areas.freeBytes(area) < layer.areas.bytes(area) / 8 {
        guard gather(area, &work) else { break }
        recycle(&work, discarding: false)
      }
    }
  }

  /// false: nothing would be gained.
  private func gather(_ area: Int, _ work: inout Work) -> Bool {
    let unreadable = work.unreadable[area]
    let sparse = layer.areas.sparsest(
      area, atMost: Self.sparseUnits, count: 8 + unreadable.count, cursor: &work.cursors[area], looks: 1024
    ).filter { !unreadable.contains($0.segment) }
    // One that is alone would need as much as it gives; and what does not fit takes another one.
    let needed = (sparse.reduce(0) { $0 + $1.units } + Self.usableUnits - 1) / Self.usableUnits
    guard sparse.count > needed else { return false }
    var hasRead = false
    for (segment, _) in sparse where clean(area, segment, &work) { hasRead = true }
    work.writer.drain()
    return hasRead
  }

  /// Writes what is alive in a segment once more, elsewhere; after the next `drain`. Where there is no room it stays. false: the segment
  /// cannot be read, and is left to swapoff, which has more patience.
  func clean(_ area: Int, _ segment: UInt32, _ work: inout Work) -> Bool {
    work.cleaning.read(area: area, segment: segment, buffer: 0)
    guard let done = work.cleaning.completed(wait: true), case .complete = done.outcome else {
      layer.areas.readFailed(area, offset: Int(segment) * AreaPlace.segmentBytes)
      work.unreadable[area].insert(segment)
      return false
    }
    let writer = work.writer
    SegmentScan.visitLive(layer, area: area, segment: segment, buffer: work.cleaning.buffer(0)) { slot, word, content in
      guard let content else {
        layer.loseInArea(slot, word)
        layer.release(slot)
        return
      }
      if !writer.append(slot, from: word, content.bytes, length: content.length, cleaning: true) { layer.release(slot) }
    }
    return true
  }
}
