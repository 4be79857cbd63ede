import Glibc

/// Bringing pages back without anybody having touched them.
extension TargetState {
  enum RestoreStep {
    /// Go on from this page; that many came back.
    case restored(next: UInt64, pages: Int)
    /// No slot is left in the range.
    case finished
    /// Read events first.
    case changing
    /// Reads from swap areas are under way: take them in, then once more.
    case reading
    case gone
  }

  /// One batch of adjacent pages of [from, end). No command may be outstanding.
  mutating func restoreStep(from: UInt64, below end: UInt64, _ buffers: FaultBuffers) -> RestoreStep {
    guard isSettled(buffers) else { return .changing }
    var cursor = from
    while let found = table.next(from: cursor, below: end) {
      guard PageTableEntry.isSlot(found.entry) else {
        cursor = found.vpn + 1
        continue
      }
      return restoreBatch(from: found.vpn, below: end, buffers)
    }
    return .finished
  }

  private mutating func restoreBatch(from first: UInt64, below end: UInt64, _ buffers: FaultBuffers) -> RestoreStep {
    var count = 0
    while count < FaultBuffers.batchPages && first + UInt64(count) < end {
      let entry = table.entry(first + UInt64(count))
      guard PageTableEntry.isSlot(entry) else { break }
      let place = buffers.bounce + count * pageSize
      switch buffers.layer.load(entry, into: place, codec: buffers.codec) {
      case .lost:
        return count > 0 ? copyBack(first, count, buffers) : poisonLost(first, entry, buffers)
      case .area:
        return count > 0 ? copyBack(first, count, buffers) : startReads(from: first, below: end, buffers)
      case .zero: place.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
      case .cached, .pool: break
      }
      count += 1
    }
    return copyBack(first, count, buffers)
  }

  /// The slot says that the page is lost until the page table of the target does.
  private mutating func poisonLost(_ page: UInt64, _ slot: SlotNumber, _ buffers: FaultBuffers) -> RestoreStep {
    switch uffd.poison(page * UInt64(pageSize), length: pageSize) {
    case .filled:
      counters.poisonedPage()
      leaveSlot(page, slot, chances: 0, buffers.layer)
    case .exists: leaveSlot(page, slot, chances: 0, buffers.layer)
    case .unmapped: break
    case .changing, .failed: return .changing
    case .gone: return .gone
    }
    return .restored(next: page + 1, pages: 0)
  }

  private mutating func copyBack(_ first: UInt64, _ count: Int, _ buffers: FaultBuffers) -> RestoreStep {
    var count = count
    while true {
      switch uffd.copy(to: first * UInt64(pageSize), from: buffers.bounce, length: count * pageSize) {
      case .filled(let pages):
        for index in 0..<pages { release(first + UInt64(index), buffers) }
        account.mapped(pages: pages)
        return .restored(next: first + UInt64(pages), pages: pages)
      case .exists:
        release(first, buffers)
        return .restored(next: first + 1, pages: 0)
      case .unmapped where count > 1:
        count = 1
      case .unmapped:
        // The mapping goes, and its event is on the way.
        return .restored(next: first + 1, pages: 0)
      case .changing, .failed:
        // Or the kernel has no memory just now.
        return .changing
      case .gone: return .gone
      }
    }
  }

  private mutating func release(_ page: UInt64, _ buffers: FaultBuffers) {
    leaveSlot(page, table.entry(page), chances: 1, buffers.layer)
  }

  /// What may be lost is not to be read as zeros when nobody answers for it any more.
  func poisonDoubtful() {
    for index in 0..<doubtful.count {
      for page in doubtful[index].start..<doubtful[index].end {
        if case .filled = uffd.poison(page * UInt64(pageSize), length: pageSize) { counters.poisonedPage() }
      }
    }
  }

  /// Wakes everyone who may wait in registered memory, and parks nobody any more.
  mutating func wakeAll() {
    for index in 0..<registered.count {
      let range = registered[index]
      uffd.wake(range.start * UInt64(pageSize), length: Int(range.end - range.start) * pageSize)
    }
    waitingCount = 0
  }
}
