import CUserfault
import CVSwapWire
import Glibc

/// What became of a fault.
enum ServiceOutcome {
  /// Served, parked, or of no concern any more.
  case done
  /// An event has to be read first; look up again after it.
  case changing
  /// The address space has gone.
  case gone
}

/// The fault path. Runs on the pager's thread, under the agent's gate whenever a command is outstanding: then the page table says
/// exactly what has left the target. Nothing here allocates, counts references or formats text.
extension TargetState {
  mutating func serve(_ fault: Fault, _ buffers: FaultBuffers) -> ServiceOutcome {
    let page = fault.address / UInt64(pageSize)
    // Nothing of it was ever evicted.
    if page >= addressablePages { return finish(uffd.zero(fault.address, length: pageSize), fault) }
    if page &- bells < UInt64(VSWAP_BELLS) { return serveAnnouncement(fault, Int(page - bells), buffers) }
    if isBroken {
      uffd.poison(fault.address, length: pageSize)
      counters.poisonedPage()
      return .done
    }
    if page == identityPage { return serveIdentity(fault, buffers) }
    // A child without an agent waits for nothing: it gets one as soon as the group comes near its limit.
    if account.room <= 0 && link != nil && !requestGranted && fault.thread != agent {
      park(fault)
      return .done
    }
    let entry = table.entry(page)
    if PageTableEntry.isSlot(entry) { return faultIn(fault, page, slot: entry, buffers) }
    return zeroFill(fault, page, buffers)
  }

  /// A forked child asks who it is.
  private func serveIdentity(_ fault: Fault, _ buffers: FaultBuffers) -> ServiceOutcome {
    buffers.bounce.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
    buffers.bounce.storeBytes(of: token, as: UInt64.self)
    return finish(uffd.copy(to: fault.address, from: buffers.bounce, length: pageSize), fault)
  }

  /// Puts the token where the child would ask for it. It takes that page away before it asks, and none of its own children inherits the page.
  /// false: not now.
  func placeToken(_ buffers: FaultBuffers) -> Bool {
    buffers.bounce.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
    buffers.bounce.storeBytes(of: token, as: UInt64.self)
    switch uffd.copy(to: identityPage * UInt64(pageSize), from: buffers.bounce, length: pageSize) {
    case .filled, .exists: return true
    case .unmapped, .changing, .gone, .failed: return false
    }
  }

  private mutating func faultIn(
    _ fault: Fault, _ page: UInt64, slot: SlotNumber, _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    if let outcome = takeAhead(fault, page, buffers) { return outcome }
    let loaded = buffers.layer.load(slot, into: buffers.bounce, codec: buffers.codec)
    switch loaded {
    case .area(let word): return startRead(fault, page, slot, word, buffers)
    case .lost:
      uffd.poison(fault.address, length: pageSize)
      counters.poisonedPage()
      return .done
    case .zero where !fault.write:
      let outcome = uffd.zero(fault.address, length: pageSize)
      return faultedIn(fault, page, outcome, nil, fromCache: false, buffers)
    case .zero, .cached, .pool:
      return bringIn(fault, page, fromCache: loaded == .cached, buffers)
    }
  }

  /// The page was unpacked before it was asked for, and others behind it.
  private mutating func takeAhead(_ fault: Fault, _ page: UInt64, _ buffers: FaultBuffers) -> ServiceOutcome? {
    guard let window = buffers.ahead.pointee.window(with: page, of: token) else { return nil }
    let ahead = foresee(page).ahead
    guard let found = window.take(page, atMost: min(ahead, roomAhead), table, codec: buffers.codec) else { return nil }
    let outcome = copyIn(fault.address, found.content, found.count)
    let result = faultedIn(fault, page, outcome, found.content, fromCache: found.fromCache, buffers)
    if case .filled(let pages) = outcome {
      window.passed(page, pages)
      if ahead >= ReadStreams.proven { buffers.ahead.pointee.follow(streams.end, of: token, table) }
    }
    return result
  }

  /// The page is in the bounce buffer. Maps it, and others around it that will be wanted.
  private mutating func bringIn(
    _ fault: Fault, _ page: UInt64, fromCache: Bool, _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    let (ahead, behind, stride) = foresee(page)
    let count = ahead > 1 ? loadAhead(page, min(ahead, roomAhead), buffers) : 1
    let outcome = copyIn(fault.address, buffers.bounce, count)
    let result = faultedIn(fault, page, outcome, buffers.bounce, fromCache: fromCache, buffers)
    guard case .filled = outcome else { return result }
    if behind > 0 { bringBehind(page, min(behind, roomAhead), buffers) }
    if count >= ReadStreams.proven { buffers.ahead.pointee.follow(streams.end, of: token, table) }
    if let stride { bringStride(stride, buffers) }
    return result
  }

  /// Maps pages below one that was just mapped: nobody waits for them.
  private mutating func bringBehind(_ page: UInt64, _ most: Int, _ buffers: FaultBuffers) {
    var count = 0
    while count < most, UInt64(count) < page {
      let entry = table.entry(page - UInt64(count) - 1)
      let place = buffers.bounce + (most - count - 1) * pageSize
      guard PageTableEntry.isSlot(entry), isInRAM(buffers.layer.load(entry, into: place, codec: buffers.codec)) else { break }
      count += 1
    }
    guard count > 0 else { return }
    let first = page - UInt64(count)
    let content = buffers.bounce + (most - count) * pageSize
    let outcome = uffd.copy(to: first * UInt64(pageSize), from: content, length: count * pageSize)
    // What could not be mapped stays where it is.
    guard case .filled(let pages) = outcome else { return }
    for index in 0..<pages {
      let other = first + UInt64(index)
      leaveSlot(other, table.entry(other), chances: 0, copyOf: content + index * pageSize, buffers.layer)
    }
    account.mapped(pages: pages)
    streams.broughtBehind(page, pages)
  }

  func isInRAM(_ result: LoadResult) -> Bool {
    switch result {
    case .zero, .cached, .pool: true
    case .area, .lost: false
    }
  }

  /// Loads the pages behind `page` into the bounce buffer, as far as they are in RAM. Returns how many there are with it.
  private mutating func loadAhead(_ page: UInt64, _ most: Int, _ buffers: FaultBuffers) -> Int {
    var count = 1
    while count < most {
      let entry = table.entry(page + UInt64(count))
      guard PageTableEntry.isSlot(entry) else { break }
      guard isInRAM(buffers.layer.load(entry, into: buffers.bounce + count * pageSize, codec: buffers.codec)) else { break }
      count += 1
    }
    return count
  }

  /// Maps pages: all, or what lies within the mapping.
  func copyIn(_ address: UInt64, _ content: UnsafeMutableRawPointer, _ count: Int) -> FillOutcome {
    let outcome = uffd.copy(to: address, from: content, length: count * pageSize)
    guard case .unmapped = outcome, count > 1 else { return outcome }
    return uffd.copy(to: address, from: content, length: pageSize)
  }

  /// After the attempt to map a page, and others behind it, from `content` (nil: zeros).
  mutating func faultedIn(
    _ fault: Fault, _ page: UInt64, _ outcome: FillOutcome, _ content: UnsafeMutableRawPointer?, fromCache: Bool,
    _ buffers: FaultBuffers
  ) -> ServiceOutcome {
    switch outcome {
    case .filled(let pages):
      pending.forgetMoves()
      // Back so soon from the cache: it was the wrong page to take. One from further back has to prove itself first, so that a scan does
      // not push the working set out.
      // What is about to be written has no use for a clean copy.
      leaveSlot(
        page, table.entry(page), chances: fromCache ? PageTableEntry.maximumChances : 0, copyOf: fault.write ? nil : content,
        buffers.layer)
      for index in 1..<max(1, pages) {
        let other = page + UInt64(index)
        leaveSlot(other, table.entry(other), chances: 0, copyOf: content.map { $0 + index * pageSize }, buffers.layer)
      }
      countFault(fault, page, pages, fromCache: fromCache)
      return .done
    case .exists:
      // Only the pager fills pages, so the mapped page is the newer one, and the target's own.
      leaveSlot(page, table.entry(page), chances: 1, buffers.layer)
      return finish(outcome, fault)
    default:
      return finish(outcome, fault)
    }
  }

  private mutating func countFault(_ fault: Fault, _ page: UInt64, _ pages: Int, fromCache: Bool) {
    if fault.thread == 0 {
      restored += pages
      account.mapped(pages: pages)
      return
    }
    streams.brought(page, pages)
    counters.faultedIn(fromCache: fromCache)
    account.faultedIn(fromCache: fromCache)
    account.mapped(pages: pages - 1)
    reclaimIfOver()
  }

  /// The page is in the target now, and the reclaimer passes it by a few times: its slot goes, or stays as a clean copy of `content`.
  mutating func leaveSlot(
    _ page: UInt64, _ slot: SlotNumber, chances: UInt32, copyOf content: UnsafeMutableRawPointer? = nil, _ layer: SlotLayer
  ) {
    var entry = PageTableEntry.resident(chances: chances)
    if let content, copyYield.shouldKeep(), layer.keepCopy(slot, of: content) {
      entry = PageTableEntry.withCopy(entry, slot)
    } else {
      layer.release(slot)
    }
    // Replacing an entry of an existing chunk cannot fail.
    _ = table.set(page, entry)
    account.swappedChanged(by: -1)
    if discarded.count > 0 { discarded.remove(from: page, below: page + 1) }
    publishSwapped()
  }

  /// A page nobody ever wrote, or whose content was discarded. Far from the limit the hole around it is filled up to 2 MiB with
  /// the zero page, which is not resident memory; near it only as much as there is room for.
  private mutating func zeroFill(_ fault: Fault, _ page: UInt64, _ buffers: FaultBuffers) -> ServiceOutcome {
    if doubtful.count > 0 && doubtful.contains(page) {
      uffd.poison(fault.address, length: pageSize)
      counters.poisonedPage()
      return .done
    }
    let near = account.isNearLimit
    var pages = near ? min(16, max(1, account.room / 64)) : 512
    pages = emptyPages(from: page, atMost: pages)
    while true {
      // Near the limit a written page becomes real at once, so that what was granted is what is counted.
      let real = fault.write && (near || pages == 1)
      let length = min(pages, real ? FaultBuffers.batchPages : pages) * pageSize
      let outcome =
        real
        ? uffd.copy(to: fault.address, from: buffers.zeros, length: length) : uffd.zero(fault.address, length: length)
      if case .filled(let filled) = outcome {
        pending.forgetMoves()
        noteZeroFilled(page, filled, real: real)
        return .done
      }
      if case .unmapped = outcome, pages > 1 {
        // A border of the mapping lies within; the touched page itself may be fine.
        pages = 1
        continue
      }
      return finish(outcome, fault)
    }
  }

  private mutating func noteZeroFilled(_ page: UInt64, _ filled: Int, real: Bool) {
    if real { account.mapped(pages: filled) }
    counters.zeroFilled(pages: filled)
    account.zeroFilled(pages: filled)
    if discarded.count > 0 { discarded.remove(from: page, below: page + UInt64(filled)) }
    if real { reclaimIfOver() }
  }

  /// How many pages from `page` on hold nothing, inside one mapping and one aligned 2 MiB.
  private mutating func emptyPages(from page: UInt64, atMost limit: Int) -> Int {
    guard limit > 1, doubtful.count == 0, let mapping = registered.range(containing: page) else { return 1 }
    let end = min(mapping.end, (page | 511) + 1, page + UInt64(limit))
    return max(1, Int(table.emptyRun(around: page, from: page, below: end).end - page))
  }

  /// The thread waits until there is room: growth is what reclaim has to keep up with, and what comes back is growth too.
  private mutating func park(_ fault: Fault) {
    keep(fault)
    reclaimIfOver()
  }

  /// The fault is served again soon. With nowhere to note it, the thread faults again.
  mutating func keep(_ fault: Fault) {
    if waitingCount < Self.waitingCapacity {
      waiting[waitingCount] = fault
      waitingCount += 1
    } else {
      uffd.wake(fault.address, length: pageSize)
    }
  }

  /// Direct reclaim: the keeper would notice soon, the group notices now.
  @inline(__always)
  func reclaimIfOver() {
    guard account.limit != nil, link != nil else { return }
    let excess = account.resident - account.high
    if excess > 0 && counters.wanted < excess { counters.wanted = excess + Int(AgentLink.bankPages) }
  }

  func finish(_ outcome: FillOutcome, _ fault: Fault) -> ServiceOutcome {
    switch outcome {
    case .filled: return .done
    case .changing: return .changing
    case .gone: return .gone
    case .exists, .unmapped, .failed:
      // The thread looks again: it finds the page, or an unmapped address, or faults once more when the kernel has memory.
      uffd.wake(fault.address, length: pageSize)
      return .done
    }
  }
}
