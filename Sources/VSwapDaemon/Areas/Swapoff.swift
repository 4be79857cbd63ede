import CUserfault
import Glibc

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
  /// Pages that each target may still be given. Asked for once: room that reclaim makes for them would only be made by evicting others.
  private var rooms: [UInt32: Int] = [:]
  private(set) var tally = Tally()
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

  /// Empties the area. `goOn` is asked several times a second. false: it said no, or there is no room for the rest.
  func run(workers: Int, goOn: (Tally) -> Bool) throws(KernelError) -> Bool {
    var ended: [Promise<Bool>] = []
    for number in 0..<workers {
      let promise = Promise<Bool>()
      try Thread.start("vswap-swapoff-\(number)") { [self] in
        work()
        promise.fulfil(true)
      }
      ended.append(promise)
    }
    asked = vs_monotonic_ns()
    let isEmpty = passes(goOn)
    // Nothing is queued any more, so each takes that for the end.
    for _ in 0..<workers { _ = vs_eventfd_signal(arrived) }
    for promise in ended { while promise.wait(milliseconds: 60_000) == nil {} }
    writer?.drain()
    return isEmpty
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
        if !done.isComplete { storage.readPieces(area: area, segment: segment, buffer: done.buffer) }
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
    return goOn(snapshot())
  }

  private func snapshot() -> Tally {
    lock.lock()
    defer { lock.unlock() }
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

  private func work() {
    let codec = Codec.create()
    let batch = PageBatch()
    while vs_semaphore_take(arrived) == 0, let next = takeArrived() {
      var sum = Tally()
      unpack(next.segment, storage.buffer(next.buffer), batch, codec, &sum)
      lock.lock()
      add(sum)
      finished.append(next.buffer)
      lock.unlock()
      _ = vs_eventfd_signal(processed)
    }
    codec.destroy()
  }

  /// nil: it is over.
  private func takeArrived() -> (segment: UInt32, buffer: Int)? {
    lock.lock()
    defer { lock.unlock() }
    return queue.isEmpty ? nil : queue.removeFirst()
  }

  private func add(_ sum: Tally) {
    tally.slots += sum.slots
    tally.bytes += sum.bytes
    tally.toTarget += sum.toTarget
    tally.toPool += sum.toPool
    tally.toAreas += sum.toAreas
    tally.lost += sum.lost
  }

  private func unpack(
    _ segment: UInt32, _ buffer: UnsafeRawPointer, _ batch: PageBatch, _ codec: Codec, _ sum: inout Tally
  ) {
    var later: [(slot: SlotNumber, word: SlotWord, bytes: UnsafeRawPointer, length: Int)] = []
    var room = 0
    SegmentScan.visitLive(layer, area: area, segment: segment, buffer: buffer) { slot, word, content in
      guard let content else {
        layer.loseInArea(slot, word)
        layer.release(slot)
        sum.lost += 1
        count(word, &sum)
        return
      }
      let owner = layer.owner(of: slot)
      // Pages that several processes share stay in one place: the pool.
      if owner.count == 2 {
        if batch.items.isEmpty || owner.target != batch.target || batch.items.count == PageBatch.capacity {
          deliver(batch, buffer, &later, &sum)
          batch.target = owner.target
          room = takeRoom(owner.target)
        }
        if room > 0, layer.unpack(content, into: batch.content + batch.items.count * pageSize, codec: codec) {
          room -= 1
          batch.items.append(.init(slot: slot, word: word, page: owner.virtualPage))
          return
        }
      }
      later.append((slot, word, content.bytes, content.length))
    }
    deliver(batch, buffer, &later, &sum)
    for item in later { placeElsewhere(item.slot, item.word, item.bytes, item.length, &sum) }
  }

  /// Up to a batch's worth.
  private func takeRoom(_ target: UInt32) -> Int {
    lock.lock()
    defer { lock.unlock() }
    let left = rooms[target] ?? sink.room(target: target)
    let taken = min(left, PageBatch.capacity)
    rooms[target] = left - taken
    return taken
  }

  /// What the target does not take goes elsewhere: it has moved, or has been discarded, or the target is stopped.
  private func deliver(
    _ batch: PageBatch, _ buffer: UnsafeRawPointer,
    _ later: inout [(slot: SlotNumber, word: SlotWord, bytes: UnsafeRawPointer, length: Int)], _ sum: inout Tally
  ) {
    guard !batch.items.isEmpty else { return }
    Interleaving.point()
    sink.deliver(batch)
    for item in batch.items {
      if item.isTaken {
        sum.toTarget += 1
        count(item.word, &sum)
        layer.release(item.slot)
      } else {
        let object = buffer + item.word.place.unitInSegment * AreaPlace.unit
        let length = Int(object.load(fromByteOffset: 12, as: UInt16.self))
        later.append((item.slot, item.word, object + AreaSegment.objectHeaderBytes, length))
      }
    }
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
      if isTaken {
        sum.toAreas += 1
        count(word, &sum)
        return
      }
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
    let codec = Codec.create()
    defer { codec.destroy() }
    guard sink.room(target: owner.target) >= Int(owner.count),
      layer.unpack((bytes, length), into: shared.content, codec: codec)
    else {
      layer.release(slot)
      return false
    }
    shared.items.append(.init(slot: slot, word: word, page: owner.virtualPage))
    sink.deliverToAll(shared)
    let isLast = layer.owner(of: slot).count == 1
    if isLast { sum.toTarget += 1 } else { layer.release(slot) }
    return isLast
  }
}
