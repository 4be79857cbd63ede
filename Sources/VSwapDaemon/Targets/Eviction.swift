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
      // Out of slots in spite of the reservation. The content has nowhere to be: SIGBUS, never zeros.
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

  /// Ends finished commands, and takes back those that the agent does not get done. Returns whether any ended.
  mutating func retireCommands() -> Bool {
    guard link!.isOutstanding else { return false }
    let now = vs_monotonic_ns()
    var moved = 0
    var isAny = false
    for bank in 0..<AgentLink.bankCount where link!.retire(bank, moved: &moved, now: now) {
      isAny = true
      letGo(link!.runs(of: bank), link!.runCount(of: bank))
    }
    if link!.isSilent(now) { link!.takeBack() }
    guard isAny else { return false }
    counters.askedSince = link!.askedSince
    sweep.movedSinceWrap += moved
    counters.workedOff(moved)
    return true
  }

  /// Gives the agent as many commands as are wanted, and as it has banks and the cache has frames for.
  mutating func pushCommands(_ budget: FrameBudget, _ map: inout MemoryMap, layer: SlotLayer) {
    while !account.isOverQuota, !requestGranted, !pending.isUnsettled, !link!.isStalled, let bank = link!.idleBank() {
      // What is on its way counts, or every round of reclaim would end a command too late.
      let pages = counters.wanted - link!.outstandingPages
      let now = vs_monotonic_ns()
      if pages <= 0 || now < sweep.pausedUntil { return }
      let share = budget.reserveShare(atMost: link!.mostPages)
      guard share > 0 else { return }
      let runs = link!.runs(of: bank)
      let chosen = hold(runs, chooseRuns(runs, atMost: min(share, max(16, pages)), &map, layer: layer).runs)
      budget.release(share - chosen.pages)
      if chosen.pages == 0 { return }
      link!.submit(bank: bank, runs: chosen.runs, pages: chosen.pages, now: now)
      counters.askedSince = link!.askedSince
    }
  }

  /// Of the runs chosen those whose pages have room in the page table, whatever happens until the command has ended. The others stay where they
  /// are: a page that has left cannot go back.
  mutating func hold(_ runs: UnsafeMutablePointer<vswap_run>, _ count: Int) -> (runs: Int, pages: Int) {
    var held = (runs: 0, pages: 0)
    for index in 0..<count {
      let run = runs[index]
      let first = run.address / UInt64(pageSize)
      guard table.hold(from: first, below: first + UInt64(run.pages)) else { continue }
      runs[held.runs] = run
      held.runs += 1
      held.pages += Int(run.pages)
    }
    return held
  }

  mutating func letGo(_ runs: UnsafeMutablePointer<vswap_run>, _ count: Int) {
    for index in 0..<count {
      let first = runs[index].address / UInt64(pageSize)
      table.letGo(from: first, below: first + UInt64(runs[index].pages))
    }
  }

  /// Fills `runs` with up to a bank's worth of pages from the hand on.
  private mutating func chooseRuns(
    _ runs: UnsafeMutablePointer<vswap_run>, atMost pages: Int, _ map: inout MemoryMap, layer: SlotLayer
  ) -> (runs: Int, pages: Int) {
    var builder = RunBuilder(runs: runs, limit: pages)
    guard makeEvictableCurrent(&map) else {
      // In vain is only what a look has found to be all.
      if !map.isWalking && sweep.restedAfter != look.count {
        sweep.restedAfter = look.count
        rest()
      }
      return (0, 0)
    }
    // What takes longer goes on with the next round: threads may be waiting.
    let start = vs_monotonic_ns()
    while !builder.isFull && vs_monotonic_ns() - start < 1_000_000 {
      guard let window = nextWindow() else {
        // The end of memory. What was chosen so far goes first: whether this round was in vain is not known before.
        if builder.pages > 0 || link!.isOutstanding || !wrap(&map) { break }
        continue
      }
      scan(from: window.start, below: window.end, &builder, &map, layer: layer)
    }
    return (builder.count, builder.pages)
  }

  /// smaps is looked at when mappings came or went, but no more than a twentieth of the time, and at most every 10 ms. A look that has begun
  /// goes on.
  private mutating func makeEvictableCurrent(_ map: inout MemoryMap) -> Bool {
    let isStale = evictableGeneration != layoutGeneration || evictable.count == 0
    // While the address space changes without a pause what is known has to do: events have kept it true.
    if map.isWalking || (isStale && isTimeToLook(after: evictable.count == 0 ? 1 : 20)) {
      let start = vs_monotonic_ns()
      repeat { lookOn(&map) } while map.isWalking && evictable.count == 0 && vs_monotonic_ns() - start < 2_000_000
    }
    return evictable.count > 0
  }

  /// `after`: times as long as the last look took.
  private func isTimeToLook(after times: UInt64) -> Bool {
    vs_monotonic_ns() - sweep.refreshedAt > max(10_000_000, times * look.lastCost)
  }

  /// The next stretch to scan: of one evictable mapping, and of those that follow closely.
  private func nextWindow() -> (start: UInt64, end: UInt64)? {
    guard let first = evictable.firstIntersection(from: sweep.hand, below: .max) else { return nil }
    let most = first.start + sweep.stride
    var end = min(first.end, most)
    while end < most, let next = evictable.firstIntersection(from: end, below: min(end + Self.gap, most)) { end = next.end }
    return (first.start, min(end, most))
  }

  /// Pages between two mappings that are scanned with them.
  private static let gap: UInt64 = 512
  /// Pages of the largest window: 8 GiB. Where nothing was ever touched that takes a few microseconds, where all has left some milliseconds.
  private static let largestStride: UInt64 = 1 << 21

  /// Starts a new round. false: there is nothing to evict for now, or it is not known yet.
  private mutating func wrap(_ map: inout MemoryMap) -> Bool {
    let inVain = sweep.movedSinceWrap == 0
    sweep.hand = 0
    sweep.movedSinceWrap = 0
    sweep.rounds += 1
    sweep.wraps = inVain ? sweep.wraps + 1 : 0
    if inVain && sweep.wraps == 1 { sweep.looksNeeded = look.count + (map.isWalking ? 2 : 1) }
    if sweep.wraps > Self.roundsInVain {
      // In vain is only what went through all that there is now.
      if look.count >= sweep.looksNeeded {
        sweep.wraps = 0
        rest()
      } else if map.isWalking || isTimeToLook(after: 1) {
        lookOn(&map)
      }
      return false
    }
    if !map.isWalking && isTimeToLook(after: inVain ? 1 : 20) { lookOn(&map) }
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
  private mutating func scan(
    from start: UInt64, below end: UInt64, _ builder: inout RunBuilder, _ map: inout MemoryMap, layer: SlotLayer
  ) {
    var walked: UInt64 = 0
    let began = vs_monotonic_ns()
    let found = withUnsafeTemporaryAllocation(of: vs_page_region.self, capacity: 256) { regions in
      let count = vs_pagemap_scan(
        pagemap, start * UInt64(pageSize), end * UInt64(pageSize), regions.baseAddress!, 256,
        UInt64(builder.limit - builder.pages), discarded.count > 0 ? 1 : 0, &walked)
      guard count >= 0 else { return false }
      adaptStride(to: vs_monotonic_ns() - began)
      let seen = UnsafeMutableBufferPointer(rebasing: regions[0..<Int(count)])
      note(seen, from: start, below: walked / UInt64(pageSize))
      for region in seen where region.isPresent {
        choose(
          from: region.start / UInt64(pageSize), below: region.end / UInt64(pageSize), &builder, &map, layer: layer)
      }
      return true
    }
    sweep.hand = found && walked > start * UInt64(pageSize) ? walked / UInt64(pageSize) : end
  }

  /// What a scan of [start, end) has found there. What the kernel has swapped out, or is moving, comes back as it was: it is no
  /// page to evict, and it has not been zapped.
  mutating func note(_ found: UnsafeMutableBufferPointer<vs_page_region>, from start: UInt64, below end: UInt64) {
    if discarded.count > 0 { forgetMissing(from: start, below: end, found) }
  }

  /// Large windows where there is little in them, and none that takes long.
  private mutating func adaptStride(to nanoseconds: UInt64) {
    if nanoseconds < 50_000 { sweep.stride = min(2 * sweep.stride, Self.largestStride) }
    if nanoseconds > 200_000 { sweep.stride = max(sweep.stride / 2, 512) }
  }

  private mutating func choose(
    from start: UInt64, below end: UInt64, _ builder: inout RunBuilder, _ map: inout MemoryMap, layer: SlotLayer
  ) {
    var cursor = start
    while let part = evictable.firstIntersection(from: cursor, below: end) {
      cursor = part.end
      // Only from what is known to be registered: a mapping that grew in place is registered in the kernel beyond that, and its new
      // part has to be entered first, or a later registration would take its slots for leftovers.
      guard register(mappingOf: part.start, &map, layer: layer), let known = registered.range(containing: part.start)
      else { continue }
      cursor = min(part.end, known.end)
      choose(from: part.start, below: cursor, &builder)
    }
  }

  mutating func choose(from start: UInt64, below end: UInt64, _ builder: inout RunBuilder) {
    var page = start
    while page < end && !builder.isFull {
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
    from start: UInt64, below end: UInt64, _ there: UnsafeMutableBufferPointer<vs_page_region>
  ) {
    var cursor = start
    for region in there {
      let low = region.start / UInt64(pageSize)
      if low > cursor { discarded.remove(from: cursor, below: low) }
      cursor = region.end / UInt64(pageSize)
    }
    if end > cursor { discarded.remove(from: cursor, below: end) }
  }
}

extension vs_page_region {
  /// In memory, not in the kernel's own swap.
  var isPresent: Bool { categories & vs_page_is_present() != 0 }
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
