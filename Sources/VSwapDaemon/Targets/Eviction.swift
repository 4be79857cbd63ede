import CUserfault
import CVSwapWire
import Glibc

/// The pager's side of eviction: choosing runs in sweep order, and taking in what the agent moved.
///
/// Segmented FIFO (Turner & Levy, SIGMETRICS 1981), since there is no accessed bit. The sweep goes through memory in address order, so a
/// page is chosen once a round. What it chose wrongly comes back from the swap cache, at the price of a copy, and has chances
/// then: the sweep passes it by that often.
extension TargetState {
  /// What `takeEvicted` found out.
  enum Intake {
    case taken
    case violation(StaticString)
  }

  /// Takes every record that has arrived. Comes before any look-up while a command is outstanding.
  mutating func takeEvicted(_ layer: SlotLayer) -> Intake {
    while true {
      switch link!.nextEvicted() {
      case .none: return .taken
      case .violation(let what): return .violation(what)
      case .evicted(let run):
        // No event that waits is about these pages, or the command would have been abandoned before it moved them.
        store(run, layer)
      }
    }
  }

  private mutating func store(_ run: AgentLink.Evicted, _ layer: SlotLayer) {
    for index in 0..<run.count {
      let page = run.page + UInt64(index)
      let content = run.content + index * pageSize
      if evictCopy(page, content, layer) { continue }
      let slot = layer.store(page: content, target: id, virtualPage: page)
      if let slot, table.set(page, slot) {
        account.swappedChanged(by: 1)
        continue
      }
      // Out of slots or page table memory in spite of the reservation. The content has nowhere to be: SIGBUS, never zeros.
      if let slot { layer.release(slot) }
      switch uffd.poison(page * UInt64(pageSize), length: pageSize) {
      case .filled, .exists, .unmapped, .gone: break
      case .changing, .failed: isBroken = true
      }
      counters.poisonedPage()
    }
    counters.evicted(pages: run.count)
    account.evicted(pages: run.count)
    publishSwapped()
    link?.publish(taken: run.count)
  }

  /// A page that came back and was not changed goes to the slot that it came from. false: it needs a new one, and its entry holds nothing any more.
  private mutating func evictCopy(_ page: UInt64, _ content: UnsafeRawPointer, _ layer: SlotLayer) -> Bool {
    let old = table.entry(page)
    if PageTableEntry.isSlot(old) {
      layer.release(old)
      account.swappedChanged(by: -1)
    }
    let copy = PageTableEntry.copy(old)
    let isUnchanged = copy != PageTableEntry.none && layer.evictCopy(copy, page: content, target: id, virtualPage: page)
    if copy != PageTableEntry.none { copyYield.note(isUnchanged: isUnchanged) }
    // Replacing an entry of an existing chunk cannot fail.
    if isUnchanged {
      _ = table.set(page, copy)
      account.swappedChanged(by: 1)
    } else if PageTableEntry.held(old) != PageTableEntry.none {
      if copy != PageTableEntry.none { layer.dropCopy(copy) }
      _ = table.set(page, PageTableEntry.resident(chances: 0))
    }
    return isUnchanged
  }

  /// Ends finished commands. Returns whether any ended.
  mutating func retireCommands(_ budget: FrameBudget) -> Bool {
    var moved = 0
    let asked = link!.retire(moved: &moved)
    guard asked > 0 else { return false }
    budget.release(asked)
    counters.askedSince = link!.askedSince
    sweep.movedSinceWrap += moved
    counters.workedOff(moved)
    return true
  }

  /// Gives the agent as many commands as are wanted, and as it has banks and the cache has frames for.
  mutating func pushCommands(_ budget: FrameBudget, _ map: inout MemoryMap, layer: SlotLayer) {
    while !requestGranted, !pending.isUnsettled, let bank = link!.idleBank() {
      // What is on its way counts, or every round of reclaim would end a command too late.
      let pages = counters.wanted - link!.outstandingPages
      if pages <= 0 || vs_monotonic_ns() < sweep.pausedUntil { return }
      guard budget.reserve(AgentLink.bankPages) else { return }
      let chosen = chooseRuns(link!.runs(of: bank), atMost: pages, &map, layer: layer)
      budget.release(AgentLink.bankPages - chosen.pages)
      if chosen.pages == 0 { return }
      link!.submit(bank: bank, runs: chosen.runs, pages: chosen.pages)
      counters.askedSince = link!.askedSince
    }
  }

  /// Fills `runs` with up to a bank's worth of pages from the hand on.
  private mutating func chooseRuns(
    _ runs: UnsafeMutablePointer<vswap_run>, atMost pages: Int, _ map: inout MemoryMap, layer: SlotLayer
  ) -> (runs: Int, pages: Int) {
    var builder = RunBuilder(runs: runs, limit: min(AgentLink.bankPages, max(16, pages)))
    guard makeEvictableCurrent(&map) else {
      rest()
      return (0, 0)
    }
    // Scans that find nothing end somewhere: a round that skips only pages with chances left is followed by one that does not.
    var scans = 0
    while !builder.isFull && scans < 256 {
      scans += 1
      guard let window = nextWindow() else {
        // The end of memory. What was chosen so far goes first: whether this round was in vain is not known before.
        if builder.pages > 0 || link!.isOutstanding || !wrap(&map) { break }
        continue
      }
      guard register(mappingOf: window.start, &map, layer: layer), let known = registered.range(containing: window.start)
      else {
        sweep.hand = window.mapping.end
        continue
      }
      // Only from what is known to be registered: a mapping that grew in place is registered in the kernel beyond that, and its new
      // part has to be entered first, or a later registration would take its slots for leftovers.
      scan(from: window.start, below: min(window.end, known.end), &builder)
    }
    return (builder.count, builder.pages)
  }

  /// smaps is read when mappings came or went, but not more often than every 10 ms.
  private mutating func makeEvictableCurrent(_ map: inout MemoryMap) -> Bool {
    let stale = evictableGeneration != layoutGeneration || evictable.count == 0
    guard stale, vs_monotonic_ns() - sweep.refreshedAt > 10_000_000 else { return evictable.count > 0 }
    // While the address space changes without a pause what is known has to do: events have kept it true.
    _ = refreshEvictable(&map)
    return evictable.count > 0
  }

  /// The next stretch of at most 2 MiB of one evictable mapping.
  private func nextWindow() -> (start: UInt64, end: UInt64, mapping: (start: UInt64, end: UInt64))? {
    guard let part = evictable.firstIntersection(from: sweep.hand, below: .max),
      let mapping = evictable.range(containing: part.start)
    else { return nil }
    return (part.start, min(part.end, (part.start | 511) + 1), mapping)
  }

  /// Starts a new round. false: the last two moved nothing, so there is nothing to evict for now.
  private mutating func wrap(_ map: inout MemoryMap) -> Bool {
    let inVain = sweep.movedSinceWrap == 0
    sweep.hand = 0
    sweep.movedSinceWrap = 0
    sweep.rounds += 1
    sweep.wraps = inVain ? sweep.wraps + 1 : 0
    if sweep.wraps > Self.roundsInVain {
      sweep.wraps = 0
      rest()
      return false
    }
    if vs_monotonic_ns() - sweep.refreshedAt > 10_000_000 { _ = refreshEvictable(&map) }
    return evictable.count > 0
  }

  /// There is nothing to evict for now.
  private mutating func rest() {
    sweep.pausedUntil = vs_monotonic_ns() + 20_000_000
    sweep.rounds += 1
    counters.sweptInVain += 1
  }

  /// Every page may have that many chances, and one round more is needed to be sure.
  private static let roundsInVain = Int(PageTableEntry.maximumChances) + 1

  /// Adds the resident pages of a window that may go, and moves the hand behind what was looked at.
  private mutating func scan(from start: UInt64, below end: UInt64, _ builder: inout RunBuilder) {
    var walked: UInt64 = 0
    let found = withUnsafeTemporaryAllocation(of: vs_page_region.self, capacity: 128) { regions in
      let count = vs_pagemap_scan(
        pagemap, start * UInt64(pageSize), end * UInt64(pageSize), regions.baseAddress!, 128,
        UInt64(builder.limit - builder.pages), &walked)
      guard count >= 0 else { return false }
      if discarded.count > 0 { forgetMissing(from: start, below: walked / UInt64(pageSize), regions, Int(count)) }
      for index in 0..<Int(count) {
        choose(
          from: regions[index].start / UInt64(pageSize), below: regions[index].end / UInt64(pageSize), &builder)
      }
      return true
    }
    sweep.hand = found && walked > start * UInt64(pageSize) ? walked / UInt64(pageSize) : end
  }

  private mutating func choose(from start: UInt64, below end: UInt64, _ builder: inout RunBuilder) {
    var page = start
    while page < end {
      let entry = table.entry(page)
      if PageTableEntry.chances(entry) > 0 {
        _ = table.set(page, PageTableEntry.passedOver(entry))
      } else if discarded.count == 0 || !discarded.contains(page) {
        builder.add(page)
      }
      page += 1
    }
  }

  /// A page that is missing now has been zapped; what will be there next is new.
  private mutating func forgetMissing(
    from start: UInt64, below end: UInt64, _ present: UnsafeMutableBufferPointer<vs_page_region>, _ count: Int
  ) {
    var cursor = start
    for index in 0..<count {
      let low = present[index].start / UInt64(pageSize)
      if low > cursor { discarded.remove(from: cursor, below: low) }
      cursor = present[index].end / UInt64(pageSize)
    }
    if end > cursor { discarded.remove(from: cursor, below: end) }
  }
}

/// Collects pages into runs of adjacent ones.
struct RunBuilder {
  private let runs: UnsafeMutablePointer<vswap_run>
  /// Most pages in all.
  let limit: Int
  private(set) var count = 0
  private(set) var pages = 0

  init(runs: UnsafeMutablePointer<vswap_run>, limit: Int) {
    self.runs = runs
    self.limit = limit
  }

  var isFull: Bool { pages >= limit }

  mutating func add(_ page: UInt64) {
    guard !isFull else { return }
    let address = page * UInt64(pageSize)
    if count > 0, runs[count - 1].address + UInt64(runs[count - 1].pages) * UInt64(pageSize) == address {
      runs[count - 1].pages += 1
    } else {
      runs[count] = vswap_run(address: address, pages: 1, reserved: 0)
      count += 1
    }
    pages += 1
  }
}
