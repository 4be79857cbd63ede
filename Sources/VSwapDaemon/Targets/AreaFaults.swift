import CUserfault
import Glibc

/// Faults on pages that lie in a swap area. The pager starts a read and goes on; when it has completed everything is looked up once more.
extension TargetState {
  mutating func startRead(
    _ fault: Fault, _ page: UInt64, _ slot: SlotNumber, _ word: SlotWord, _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    if buffers.reader.isReading(token, fault.address) { return .done }
    // Close to the limit nothing that a read brings along would be mapped, and nobody should wait for it.
    let (ahead, _, stride) = foresee(page)
    let isStream = ahead > 1 && account.room >= 64
    if buffers.reader.isBringing(token, word) {
      keep(fault)
    } else {
      switch buffers.reader.start(fault, token: token, slot: slot, word: word, around: isStream) {
      case .underWay: break
      case .busy: keep(fault)
      case .impossible: return readNow(fault, slot, word, buffers)
      }
    }
    // With little room below the limit what is asked for goes first.
    if isStream, let wanted = streams.want(after: page, atMost: account.room / 16) { readAhead(wanted, buffers) }
    if let stride { bringStride(stride, buffers) }
    return .done
  }

  /// A read ahead for the page has completed: the next one.
  mutating func readOn(after page: UInt64, _ buffers: FaultBuffers) {
    if account.room >= 64, let wanted = streams.wanted(of: page) { readAhead(wanted, buffers) }
  }

  /// Starts reads of what a stream of faults will want next and no read under way brings along. Pages that do not compress lie in other
  /// segments than their neighbours, so one read seldom brings everything.
  private mutating func readAhead(_ wanted: (stream: Int, pages: Range<UInt64>), _ buffers: FaultBuffers) {
    for next in wanted.pages {
      let entry = table.entry(next)
      guard PageTableEntry.isSlot(entry) else { continue }
      let word = buffers.layer.table.word(entry)
      guard word.kind == .area, !buffers.reader.isBringing(token, word) else { continue }
      let fault = Fault(address: next * UInt64(pageSize), thread: Fault.ahead, write: false)
      guard case .underWay = buffers.reader.start(fault, token: token, slot: entry, word: word, around: true) else {
        return streams.reading(to: next, of: wanted.stream)
      }
    }
    streams.reading(to: wanted.pages.upperBound, of: wanted.stream)
  }

  private mutating func readNow(_ fault: Fault, _ slot: SlotNumber, _ word: SlotWord, _ buffers: FaultBuffers) -> ServiceOutcome {
    let scratch = buffers.bounce + ReadStreams.longest * pageSize
    let object = buffers.reader.readNow(word, into: scratch)
    return take(fault, slot, word, object, window: nil, buffers)
  }

  /// A read has completed.
  mutating func finishRead(_ flight: AreaReader.Flight, isComplete: Bool, _ buffers: FaultBuffers) -> DrainOutcome {
    guard enterGate(buffers.layer) else {
      if flight.fault.thread != Fault.ahead { keep(flight.fault) }
      return .kept
    }
    defer { link?.leave() }
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    guard isSettled(buffers) else {
      if flight.fault.thread != Fault.ahead { keep(flight.fault) }
      return .again
    }
    if flight.fault.thread == Fault.ahead {
      return isComplete ? mapBrought(from: flight.fault.address / UInt64(pageSize), flight, buffers) : .drained
    }
    let object = isComplete ? flight.object(flight.word.place) : nil
    switch take(flight.fault, flight.slot, flight.word, object, window: flight, buffers) {
    case .done:
      guard isComplete, flight.isAround else { return .drained }
      return mapBrought(from: flight.fault.address / UInt64(pageSize) + 1, flight, buffers)
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
    let count = window.map { neighbours(after: page, $0, buffers) } ?? 0
    return faultedIn(fault, page, copyIn(fault.address, buffers.bounce, count + 1), buffers.bounce, fromCache: false, buffers)
  }

  /// Unpacks the pages after `page` that the same read has brought, behind it. Returns how many.
  private func neighbours(after page: UInt64, _ flight: AreaReader.Flight, _ buffers: FaultBuffers) -> Int {
    // With little room below the limit what is asked for goes first.
    unpackRun(
      from: page + 1, atMost: min(ReadStreams.longest - 1, account.room / 16), flight, into: buffers.bounce + pageSize, buffers)
  }

  /// Slot and word of a page that a read has brought; nil: it lies elsewhere.
  @inline(__always)
  private func brought(_ page: UInt64, _ flight: AreaReader.Flight, _ buffers: FaultBuffers) -> (SlotNumber, SlotWord)? {
    let entry = table.entry(page)
    guard PageTableEntry.isSlot(entry) else { return nil }
    let word = buffers.layer.table.word(entry)
    return word.kind == .area && flight.holds(word.place) ? (entry, word) : nil
  }

  /// Unpacks adjacent pages that a read has brought. Returns how many.
  private func unpackRun(
    from page: UInt64, atMost most: Int, _ flight: AreaReader.Flight, into place: UnsafeMutableRawPointer, _ buffers: FaultBuffers
  ) -> Int {
    var count = 0
    while count < most {
      guard let (slot, word) = brought(page + UInt64(count), flight, buffers),
        let content = buffers.layer.content(of: flight.object(word.place), slot, word),
        buffers.layer.unpack(content, into: place + count * pageSize, codec: buffers.codec)
      else { break }
      count += 1
    }
    return count
  }

  /// Maps what a read has brought of the pages from `page` on, with holes where a page lies elsewhere. What is not mapped stays where it is.
  private mutating func mapBrought(from page: UInt64, _ flight: AreaReader.Flight, _ buffers: FaultBuffers) -> DrainOutcome {
    // Of a stride only the page itself.
    let end = page + UInt64(flight.isAround ? Self.reach : 1)
    var next = page
    while next < end {
      let most = min(ReadStreams.longest, Int(end - next), account.room / 16)
      let count = unpackRun(from: next, atMost: most, flight, into: buffers.bounce, buffers)
      guard count > 0 else {
        next += 1
        continue
      }
      switch copyIn(next * UInt64(pageSize), buffers.bounce, count) {
      case .filled(let pages):
        pending.forgetMoves()
        for index in 0..<pages {
          let page = next + UInt64(index)
          leaveSlot(page, table.entry(page), chances: 0, copyOf: buffers.bounce + index * pageSize, buffers.layer)
        }
        account.mapped(pages: pages)
        if flight.isAround { streams.brought(next, pages) }
        next += UInt64(pages)
      case .changing: return .again
      case .gone: return .gone
      case .exists, .unmapped, .failed: next += 1
      }
    }
    reclaimIfOver()
    return .drained
  }

  /// Pages among which those are looked for that a read has brought: of well compressible ones more fit into it.
  private static let reach = Haul.capacity

  /// What a completed read ahead has brought, for somebody to unpack and map. nil: there is little room left, or too much to do.
  func haul(_ flight: AreaReader.Flight, _ buffers: FaultBuffers) -> Haul? {
    // With little room below the limit what is asked for goes first.
    let most = min(Haul.capacity, account.room / 16)
    guard flight.fault.thread == Fault.ahead, flight.isAround, most >= ReadStreams.longest, !requestGranted,
      let place = (0..<FaultBuffers.haulCount).first(where: { buffers.hauls[$0].isFree })
    else { return nil }
    let haul = buffers.hauls[place]
    haul.begin()
    let first = flight.fault.address / UInt64(pageSize)
    for page in first..<first + UInt64(Self.reach) where haul.count < most {
      if let (slot, word) = brought(page, flight, buffers) { haul.add(Haul.Item(page: page, slot: slot, word: word)) }
    }
    haul.close(flight)
    buffers.reader.hold(flight)
    return haul
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

  /// What a worker has unpacked of a read ahead. It must not wait for this target's agent: others' streams need it, too.
  mutating func bringInAhead(_ batch: PageBatch, _ buffers: FaultBuffers) -> DrainOutcome {
    guard link == nil || link!.tryEnter() else { return .again }
    let outcome = bringInEntered(batch, keepingCopies: true, buffers)
    for item in batch.items where item.isTaken { streams.brought(item.page, 1) }
    reclaimIfOver()
    return outcome
  }

  /// From swapoff: pages whose content is in the batch, each if its slot still is where the content was read.
  mutating func bringIn(_ batch: PageBatch, _ buffers: FaultBuffers) -> DrainOutcome {
    guard enterGate(buffers.layer) else { return .kept }
    return bringInEntered(batch, keepingCopies: false, buffers)
  }

  /// With the gate, which it leaves.
  private mutating func bringInEntered(_ batch: PageBatch, keepingCopies: Bool, _ buffers: FaultBuffers) -> DrainOutcome {
    defer { link?.leave() }
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    guard isSettled(buffers) else { return .again }
    var index = 0
    while index < batch.items.count {
      guard belongs(batch, index, buffers) else {
        if !keepingCopies { giveUpCopy(batch, index, buffers) }
        index += 1
        continue
      }
      var end = index + 1
      while end < batch.items.count, batch.items[end].page == batch.items[end - 1].page + 1, belongs(batch, end, buffers) {
        end += 1
      }
      switch bringIn(batch, index..<end, keepingCopies, buffers) {
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

  /// The page is resident already, and what lies in the area is its clean copy.
  private mutating func giveUpCopy(_ batch: PageBatch, _ index: Int, _ buffers: FaultBuffers) {
    let item = batch.items[index]
    let entry = table.entry(item.page)
    guard PageTableEntry.copy(entry) == item.slot else { return }
    _ = table.set(item.page, PageTableEntry.withCopy(entry, PageTableEntry.none))
    buffers.layer.dropCopy(item.slot)
    batch.items[index].isTaken = true
  }

  /// Adjacent pages in one call.
  private mutating func bringIn(
    _ batch: PageBatch, _ items: Range<Int>, _ keepingCopies: Bool, _ buffers: FaultBuffers
  ) -> FillOutcome {
    let first = items.lowerBound
    var count = items.count
    let page = batch.items[first].page
    while true {
      let outcome = uffd.copy(
        to: page * UInt64(pageSize), from: batch.content + first * pageSize, length: count * pageSize)
      switch outcome {
      case .filled(let pages):
        pending.forgetMoves()
        for index in first..<first + pages { leave(batch, index, keepingCopies, buffers) }
        account.mapped(pages: pages)
        return outcome
      case .exists:
        // The target's own page is the newer one.
        leave(batch, first, false, buffers)
        return outcome
      case .unmapped where count > 1: count = 1
      default: return outcome
      }
    }
  }

  private mutating func leave(_ batch: PageBatch, _ index: Int, _ keepingCopy: Bool, _ buffers: FaultBuffers) {
    batch.items[index].isTaken = true
    leaveSlot(
      batch.items[index].page, batch.items[index].slot, chances: 0,
      copyOf: keepingCopy ? batch.content + index * pageSize : nil, buffers.layer)
  }
}
