import CUserfault
import Glibc
import Synchronization

/// Takes an area out of use while everything runs: reads its segments in the order of the disk, and brings every slot that still
/// lies there back into memory, after patch 19 of the Linux Virtual Swap Space series (v3, 2026). No page table is walked: the segments
/// say whose slots lie in them.
///
/// One reader (the calling thread) keeps several reads under way; workers unpack what has arrived.
final class Swapoff: @unchecked Sendable {
  struct Tally {
    var slots = 0
    var bytes = 0
    var toTarget = 0
    var toPool = 0
    var toAreas = 0
    var lost = 0
  }

  private let layer: SlotLayer
  private let area: Int
  private let storage: any SegmentStorage
  private let sink: any PageSink
  /// For what neither targets nor pool can take.
  private let writer: SegmentWriter?
  private let writerLock = Lock.create()
  private let lock = Lock.create()
  private let arrived: Int32
  private let processed: Int32
  private var queue: [(segment: UInt32, buffer: Int)] = []
  private var finished: [Int] = []
  private var isOver = false
  /// Nothing more is to be moved.
  private let isStopped = Atomic<Bool>(false)
  /// Pages that each target may still be given. Asked for once: room that reclaim makes for them would only be made by evicting others.
  private var rooms: [UInt32: Int] = [:]
  /// Without what went to other areas: the writer counts that when it is written.
  private var moved = Tally()
  /// Between two questions whether to go on, in nanoseconds.
  var interval: UInt64 = 50_000_000
  private var asked: UInt64 = 0
  /// How long a swapoff that gets nowhere waits for room, in nanoseconds.
  var patience: UInt64 = 5_000_000_000

  /// `writing` is another storage, for areas that stay.
  init(
    layer: SlotLayer, area: Int, storage: any SegmentStorage, writing: (any SegmentStorage)?, sink: any PageSink
  ) throws(KernelError) {
    self.layer = layer
    self.area = area
    self.storage = storage
    self.sink = sink
    writer = writing.map { SegmentWriter(layer: layer, storage: $0, buffers: 0..<$0.depth) }
    arrived = vs_semaphore()
    processed = vs_eventfd()
    guard arrived >= 0, processed >= 0 else { throw KernelError(call: "eventfd", code: -min(arrived, processed)) }
  }

  deinit {
    close(arrived)
    close(processed)
    lock.destroy()
    writerLock.destroy()
  }

  /// Empties the area; after a cancelled one, once more. `goOn` is asked several times a second. false: it said no, or there is no room for the rest.
  func run(workers: Int, goOn: (Tally) -> Bool) throws(KernelError) -> Bool {
    var ended: [Promise<Bool>] = []
    lock.lock()
    isOver = false
    lock.unlock()
    isStopped.store(false, ordering: .relaxed)
    defer { end(ended) }
    for number in 0..<workers {
      let promise = Promise<Bool>()
      let codec = try Codec.create()
      do throws(KernelError) {
        try Thread.start("vswap-swapoff-\(number)") { [self] in
          work(codec)
          codec.destroy()
          promise.fulfil(true)
        }
      } catch {
        codec.destroy()
        throw error
      }
      ended.append(promise)
    }
    asked = vs_monotonic_ns()
    return passes(goOn)
  }

  /// Everything that was read has been worked off. No worker waits for a target for longer than `PageSink` says, and of what was not begun
  /// when the swapoff was cancelled each only lets go.
  private func end(_ workers: [Promise<Bool>]) {
    lock.lock()
    isOver = true
    lock.unlock()
    for _ in workers { _ = vs_eventfd_signal(arrived) }
    for promise in workers { _ = promise.wait() }
    writer?.drain()
  }

  /// Over the whole area, until nothing is left, or nothing has moved for a while.
  private func passes(_ goOn: (Tally) -> Bool) -> Bool {
    var least = Int.max
    var movedAt = vs_monotonic_ns()
    while !layer.areas.isVacant(area) {
      let live = layer.areas.figures(area).liveObjects
      if live > 0 && live < least {
        least = live
        movedAt = vs_monotonic_ns()
      } else {
        // The swapoff of another area may be writing to this one, however long that takes. Then it starts anew.
        if live == 0 { (least, movedAt) = (.max, vs_monotonic_ns()) }
        if vs_monotonic_ns() - movedAt > patience { return false }
        // Somebody holds a reference for a moment, or there is no room just now.
        usleep(2000)
      }
      guard pass(goOn) else { return false }
      writerLock.lock()
      writer?.drain()
      writerLock.unlock()
    }
    return true
  }

  /// Reads all segments once, with as many reads under way as there are buffers.
  private func pass(_ goOn: (Tally) -> Bool) -> Bool {
    var idle = Array(0..<storage.depth)
    var reading: [Int: UInt32] = [:]
    var next: UInt32? = 1
    var isWanted = true
    while true {
      while isWanted, !idle.isEmpty, let from = next {
        guard let found = layer.areas.nextSealed(area, from: from) else {
          next = nil
          break
        }
        next = found.segment + 1
        let buffer = idle.removeLast()
        reading[buffer] = found.segment
        storage.read(area: area, segment: found.segment, buffer: buffer)
      }
      let busy = storage.depth - idle.count
      if busy == 0 { return isWanted && isStillWanted(goOn) }
      // Reads first, since they keep the disk busy; then buffers that workers are through with.
      if let done = storage.completed(wait: !reading.isEmpty && busy == reading.count),
        let segment = reading.removeValue(forKey: done.buffer)
      {
        if case .complete = done.outcome {} else { storage.readPieces(area: area, segment: segment, buffer: done.buffer) }
        hand(segment, done.buffer)
      } else if busy > reading.count {
        _ = vs_wait_readable(processed, reading.isEmpty ? 100_000 : 500)
      }
      vs_eventfd_clear(processed)
      idle += takeFinished()
      if isWanted { isWanted = isStillWanted(goOn) }
    }
  }

  /// Asks now and then; over all passes, since one that finds nothing to read takes no time.
  private func isStillWanted(_ goOn: (Tally) -> Bool) -> Bool {
    let now = vs_monotonic_ns()
    guard now - asked >= interval else { return true }
    asked = now
    let isWanted = goOn(tally)
    if !isWanted { isStopped.store(true, ordering: .relaxed) }
    return isWanted
  }

  /// What was moved so far.
  var tally: Tally {
    lock.lock()
    var tally = moved
    lock.unlock()
    guard let writer else { return tally }
    writerLock.lock()
    defer { writerLock.unlock() }
    tally.toAreas = writer.placed
    tally.slots += writer.placed
    tally.bytes += writer.placedBytes
    return tally
  }

  private func hand(_ segment: UInt32, _ buffer: Int) {
    lock.lock()
    queue.append((segment, buffer))
    lock.unlock()
    _ = vs_eventfd_signal(arrived)
  }

  private func takeFinished() -> [Int] {
    lock.lock()
    defer { lock.unlock() }
    let taken = finished
    finished = []
    return taken
  }

  // MARK: - Workers

  private func work(_ codec: Codec) {
    var batch = PageBatch()
    var found: [Found] = []
    while vs_semaphore_take(arrived) == 0 {
      let (segments, isOver) = takeArrived()
      if isOver { break }
      if segments.isEmpty { continue }
      var sum = Tally()
      for next in segments where !hasStopped { collect(next.segment, storage.buffer(next.buffer), &found, &sum) }
      distribute(&found, &batch, codec, &sum)
      lock.lock()
      add(sum)
      finished += segments.map(\.buffer)
      lock.unlock()
      _ = vs_eventfd_signal(processed)
    }
  }

  /// Segments that were written one after the other hold pages of one neighbourhood, above all where those that do not compress went first.
  private static let group = 4

  /// Several segments where there are several; none if another worker had them.
  private func takeArrived() -> (segments: [(segment: UInt32, buffer: Int)], isOver: Bool) {
    lock.lock()
    defer { lock.unlock() }
    let count = min(queue.count, Self.group)
    let taken = Array(queue.prefix(count))
    queue.removeFirst(count)
    return (taken, isOver && count == 0)
  }

  private func add(_ sum: Tally) {
    moved.slots += sum.slots
    moved.bytes += sum.bytes
    moved.toTarget += sum.toTarget
    moved.toPool += sum.toPool
    moved.lost += sum.lost
  }

  /// A slot that lies in a segment that was read. The worker holds a reference.
  private struct Found {
    var slot: SlotNumber
    var word: SlotWord
    var content: (bytes: UnsafeRawPointer, length: Int)
    /// Where its page belongs; 0 where several processes share it.
    var target: UInt32
    var page: UInt64
  }

  private func collect(_ segment: UInt32, _ buffer: UnsafeRawPointer, _ found: inout [Found], _ sum: inout Tally) {
    SegmentScan.visitLive(layer, area: area, segment: segment, buffer: buffer) { slot, word, content in
      guard let content else {
        if layer.loseInArea(slot, word) {
          sum.lost += 1
          count(word, &sum)
        }
        layer.release(slot)
        return
      }
      let owner = layer.owner(of: slot)
      // One reference is the worker's. Pages that several processes share stay in one place: the pool.
      found.append(
        Found(slot: slot, word: word, content: content, target: owner.count == 2 ? owner.target : 0, page: owner.virtualPage))
    }
  }

  /// Brings each page where there is room for it; adjacent pages together.
  private func distribute(_ found: inout [Found], _ batch: inout PageBatch, _ codec: Codec, _ sum: inout Tally) {
    found.sort { ($0.target, $0.page) < ($1.target, $1.page) }
    var first = 0
    while first < found.count && !hasStopped {
      let target = found[first].target
      var end = first + 1
      while end < found.count, end - first < PageBatch.capacity, found[end].target == target { end += 1 }
      if target != 0 { deliver(&found, first..<end, &batch, codec, &sum) }
      first = end
    }
    for item in found where item.slot != 0 {
      if hasStopped {
        layer.release(item.slot)
      } else {
        placeElsewhere(item.slot, item.word, item.content.bytes, item.content.length, &sum)
      }
    }
    found.removeAll(keepingCapacity: true)
  }

  private var hasStopped: Bool { isStopped.load(ordering: .relaxed) }

  private func takeRoom(_ target: UInt32, _ pages: Int) -> Int {
    lock.lock()
    defer { lock.unlock() }
    let left = rooms[target] ?? sink.room(target: target)
    let taken = max(0, min(left, pages))
    rooms[target] = left - taken
    return taken
  }

  private func giveRoomBack(_ target: UInt32, _ pages: Int) {
    lock.lock()
    rooms[target]? += pages
    lock.unlock()
  }

  /// Slots whose pages the target took become 0. What it does not take goes elsewhere: it has moved, or was discarded, or the target
  /// is stopped.
  private func deliver(
    _ found: inout [Found], _ range: Range<Int>, _ batch: inout PageBatch, _ codec: Codec, _ sum: inout Tally
  ) {
    batch.target = found[range.lowerBound].target
    let room = takeRoom(batch.target, range.count)
    for index in range.prefix(room) {
      let item = found[index]
      guard layer.unpack(item.content, into: batch.content + batch.items.count * pageSize, codec: codec) else { break }
      batch.items.append(.init(slot: item.slot, word: item.word, page: item.page))
    }
    if batch.items.isEmpty { return giveRoomBack(batch.target, room) }
    Interleaving.point()
    guard sink.deliver(batch) else {
      // Its pages go elsewhere as they are. The target may have had some of them meanwhile: then their slots are ours alone, and go with us.
      let target = batch.target
      batch = PageBatch()
      return giveRoomBack(target, room)
    }
    var taken = 0
    for (offset, item) in batch.items.enumerated() where item.isTaken {
      taken += 1
      count(item.word, &sum)
      layer.release(item.slot)
      found[range.lowerBound + offset].slot = 0
    }
    sum.toTarget += taken
    giveRoomBack(batch.target, room - taken)
    batch.items.removeAll(keepingCapacity: true)
  }

  private func placeElsewhere(
    _ slot: SlotNumber, _ word: SlotWord, _ bytes: UnsafeRawPointer, _ length: Int, _ sum: inout Tally
  ) {
    switch layer.placeInPool(slot, from: word, bytes, length: length) {
    case .placed: sum.toPool += 1
    case .elsewhere:
      layer.release(slot)
      return
    case .noRoom:
      writerLock.lock()
      let isTaken = writer?.append(slot, from: word, bytes, length: length) == true
      writerLock.unlock()
      if isTaken { return }
      guard bringToAll(slot, word, bytes, length, &sum) else { return }
    }
    count(word, &sum)
    layer.release(slot)
  }

  private func count(_ word: SlotWord, _ sum: inout Tally) {
    sum.slots += 1
    sum.bytes += word.place.bytes
  }

  /// The last resort for a page that several processes share: each gets a copy of its own. false: some have it still, or there is no
  /// room for that either; the slot is released.
  private func bringToAll(
    _ slot: SlotNumber, _ word: SlotWord, _ bytes: UnsafeRawPointer, _ length: Int, _ sum: inout Tally
  ) -> Bool {
    let owner = layer.owner(of: slot)
    let shared = PageBatch()
    shared.isShared = true
    // Without memory for it there is no room.
    guard let codec = try? Codec.create() else {
      layer.release(slot)
      return false
    }
    defer { codec.destroy() }
    guard sink.room(target: owner.target) >= Int(owner.count),
      layer.unpack((bytes, length), into: shared.content, codec: codec)
    else {
      layer.release(slot)
      return false
    }
    shared.items.append(.init(slot: slot, word: word, page: owner.virtualPage))
    _ = sink.deliverToAll(shared)
    let isLast = layer.owner(of: slot).count == 1
    if isLast { sum.toTarget += 1 } else { layer.release(slot) }
    return isLast
  }
}
