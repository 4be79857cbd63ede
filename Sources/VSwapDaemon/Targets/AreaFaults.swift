import CUserfault
import Glibc

/// Faults on pages that lie in a swap area. The pager starts a read and goes on; when it has completed everything is looked up once more.
extension TargetState {
  mutating func startRead(
    _ fault: Fault, _ page: UInt64, _ slot: SlotNumber, _ word: SlotWord, _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    if buffers.reader.isReading(token, fault.address) { return .done }
    switch buffers.reader.start(fault, token: token, slot: slot, word: word, around: streams.fault(page).ahead > 1) {
    case .underWay: break
    case .busy: keep(fault)
    case .impossible: return readNow(fault, slot, word, buffers)
    }
    return .done
  }

  private mutating func readNow(_ fault: Fault, _ slot: SlotNumber, _ word: SlotWord, _ buffers: FaultBuffers) -> ServiceOutcome {
    let scratch = buffers.bounce + ReadStreams.longest * pageSize
    let object = buffers.reader.readNow(word, into: scratch)
    return take(fault, slot, word, object, window: nil, buffers)
  }

  /// A read has completed.
  mutating func finishRead(_ flight: AreaReader.Flight, isComplete: Bool, _ buffers: FaultBuffers) -> DrainOutcome {
    if link != nil && !link!.enter() { return .gone }
    defer { link?.leave() }
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    guard isSettled(buffers) else {
      keep(flight.fault)
      return .again
    }
    let object = isComplete ? UnsafeRawPointer(flight.buffer + (flight.word.place.offset - flight.start)) : nil
    switch take(flight.fault, flight.slot, flight.word, object, window: flight, buffers) {
    case .done: return .drained
    case .gone: return .gone
    case .changing:
      keep(flight.fault)
      return .again
    }
  }

  /// The object was read, or (nil) could not be.
  private mutating func take(
    _ fault: Fault, _ slot: SlotNumber, _ word: SlotWord, _ object: UnsafeRawPointer?, window: AreaReader.Flight?,
    _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    let page = fault.address / UInt64(pageSize)
    guard table.entry(page) == slot, buffers.layer.table.isStill(slot, word) else {
      // The page is somewhere else by now, or discarded: the fault begins anew. A thread may have faulted while a read of our own was
      // under way: it is not noted, so it looks again.
      if fault.thread != 0 { return serve(fault, buffers) }
      uffd.wake(fault.address, length: pageSize)
      return .done
    }
    guard let object, let content = buffers.layer.content(of: object, slot, word),
      buffers.layer.unpack(content, into: buffers.bounce, codec: buffers.codec)
    else {
      buffers.layer.loseInArea(slot, word)
      return serve(fault, buffers)
    }
    let count = window.map { neighbours(after: page, of: word, $0, buffers) } ?? 0
    return faultedIn(fault, page, copyIn(fault.address, buffers.bounce, count + 1), fromCache: false, buffers)
  }

  /// Unpacks the pages after `page` that the same read has brought, behind it. Returns how many.
  private mutating func neighbours(
    after page: UInt64, of word: SlotWord, _ flight: AreaReader.Flight, _ buffers: FaultBuffers
  ) -> Int {
    // With little room below the limit what is asked for goes first.
    let most = min(ReadStreams.longest - 1, account.room / 16)
    var count = 0
    while count < most {
      let entry = table.entry(page + UInt64(count) + 1)
      guard PageTableEntry.isSlot(entry) else { break }
      let other = buffers.layer.table.word(entry)
      guard other.kind == .area, other.place.area == word.place.area, other.place.offset >= flight.start,
        other.place.offset + other.place.bytes <= flight.start + flight.length
      else { break }
      let object = UnsafeRawPointer(flight.buffer + (other.place.offset - flight.start))
      guard let content = buffers.layer.content(of: object, entry, other),
        buffers.layer.unpack(content, into: buffers.bounce + (count + 1) * pageSize, codec: buffers.codec)
      else { break }
      count += 1
    }
    return count
  }

  // MARK: - Unasked

  /// For a restore: as many reads as there are buffers for.
  mutating func startReads(from first: UInt64, below end: UInt64, _ buffers: FaultBuffers) -> RestoreStep {
    var cursor = first
    for _ in 0..<AreaReader.capacity {
      guard let found = table.next(from: cursor, below: end) else { break }
      cursor = found.vpn + 1
      guard PageTableEntry.isSlot(found.entry) else { continue }
      let word = buffers.layer.table.word(found.entry)
      let address = found.vpn * UInt64(pageSize)
      guard word.kind == .area, !buffers.reader.isReading(token, address) else { continue }
      let fault = Fault(address: address, thread: 0, write: false)
      switch buffers.reader.start(fault, token: token, slot: found.entry, word: word, around: true) {
      case .underWay: cursor = found.vpn + UInt64(ReadStreams.longest)
      case .busy: return .reading
      case .impossible:
        if case .gone = readNow(fault, found.entry, word, buffers) { return .gone }
        return .restored(next: found.vpn, pages: 0)
      }
    }
    return .reading
  }

  /// From swapoff: pages whose content is in the batch, each if its slot still is where the content was read.
  mutating func bringIn(_ batch: PageBatch, _ buffers: FaultBuffers) -> DrainOutcome {
    if link != nil && !link!.enter() { return .gone }
    defer { link?.leave() }
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    guard isSettled(buffers) else { return .again }
    var index = 0
    while index < batch.items.count {
      guard belongs(batch, index, buffers) else {
        index += 1
        continue
      }
      var end = index + 1
      while end < batch.items.count, batch.items[end].page == batch.items[end - 1].page + 1, belongs(batch, end, buffers) {
        end += 1
      }
      switch bringIn(batch, index, end, buffers) {
      case .filled(let pages): index += pages
      case .changing: return .again
      case .gone: return .gone
      case .exists, .unmapped, .failed: index += 1
      }
    }
    return .drained
  }

  private mutating func belongs(_ batch: PageBatch, _ index: Int, _ buffers: FaultBuffers) -> Bool {
    let item = batch.items[index]
    return (!item.isTaken || batch.isShared) && table.entry(item.page) == item.slot
      && buffers.layer.table.isStill(item.slot, item.word)
  }

  /// Adjacent pages in one call.
  private mutating func bringIn(_ batch: PageBatch, _ first: Int, _ end: Int, _ buffers: FaultBuffers) -> FillOutcome {
    var count = end - first
    let page = batch.items[first].page
    while true {
      let outcome = uffd.copy(
        to: page * UInt64(pageSize), from: batch.content + first * pageSize, length: count * pageSize)
      switch outcome {
      case .filled(let pages):
        pending.forgetMoves()
        for index in first..<first + pages { leave(batch, index, buffers) }
        account.mapped(pages: pages)
        return outcome
      case .exists:
        // The target's own page is the newer one.
        leave(batch, first, buffers)
        return outcome
      case .unmapped where count > 1: count = 1
      default: return outcome
      }
    }
  }

  private mutating func leave(_ batch: PageBatch, _ index: Int, _ buffers: FaultBuffers) {
    batch.items[index].isTaken = true
    leaveSlot(batch.items[index].page, batch.items[index].slot, chances: 0, buffers.layer)
  }
}
