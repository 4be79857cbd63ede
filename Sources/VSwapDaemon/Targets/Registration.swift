import CUserfault
import Glibc

/// Which mappings of a target are registered, and which may be evicted from.
extension TargetState {
  /// Goes on looking at smaps, or begins to: mappings that are private, anonymous, writable, and not locked, wiped at fork, or somebody's
  /// stack. For half a millisecond; `evictable` is replaced when the end is reached.
  mutating func lookOn(_ map: inout MemoryMap) {
    let start = Thread.cpuNanoseconds
    if !map.isWalking {
      guard (try? map.beginWalk()) != nil else { return giveUpLook(&map) }
      look.begin(layout: layoutGeneration)
    }
    guard let regions = try? map.nextPiece(500_000, pagemap: pagemap) else { return giveUpLook(&map) }
    // Events are read by this thread alone. So if none is unread now, none was when these lines were read.
    var isQuiet = false
    if !pending.isUnsettled, case .unmapped = uffd.probe(at: probeAddress) { isQuiet = true }
    if !isQuiet { look.isQuiet = false }
    if isQuiet { forgetUntracked(regions, isLast: !map.isWalking) }
    for region in regions where region.anonymous && region.writable && !region.excluded {
      if !isPrivate(region.start, region.end) { look.found.insert(from: region.start, below: region.end) }
    }
    look.cursor = map.isWalking ? regions.last?.end ?? look.cursor : .max
    look.cost += Thread.cpuNanoseconds - start
    if !map.isWalking { endLook() }
  }

  private mutating func endLook() {
    isCompared = isCompared || look.isQuiet
    sweep.refreshedAt = vs_monotonic_ns()
    // Under threads that map and unmap without a pause a list that is about to change is better than none: it only says where to try, and
    // events that are unread yet take out of it what they are about. Nothing is registered without a quiet kernel.
    guard isCompared else { return look.end() }
    if look.isQuiet && look.layout == layoutGeneration { evictableGeneration = layoutGeneration }
    swap(&evictable, &look.found)
    look.end()
  }

  private mutating func giveUpLook(_ map: inout MemoryMap) {
    map.endWalk()
    sweep.refreshedAt = vs_monotonic_ns()
    look.end()
  }

  /// What a thread was granted, and is done with, shows in smaps only.
  mutating func forgetEvictable(_ map: inout MemoryMap) {
    layoutGeneration += 1
    map.endWalk()
    look.found.removeAll()
    sweep.refreshedAt = 0
    evictable.removeAll()
  }

  /// From the end of the piece before to the end of this one: what the kernel does not have registered leaves `registered`. A child has it from
  /// its parent, but not the mappings that were not copied (MADV_DONTFORK); and shmat(SHM_REMAP) replaces a mapping without an event. Evicting
  /// from such a place would lose the page.
  private mutating func forgetUntracked(_ regions: [MappedRegion], isLast: Bool) {
    var cursor = look.cursor
    for region in regions {
      // Before the first one something may have been mapped, registered and evicted from since the last piece.
      if region.start > cursor && (cursor > look.cursor || !isCompared) { registered.remove(from: cursor, below: region.start) }
      if !region.tracksMissing { registered.remove(from: region.start, below: region.end) }
      cursor = max(cursor, region.end)
    }
    if isLast && (cursor > look.cursor || !isCompared) { registered.remove(from: cursor, below: .max) }
    publishToAgent()
  }

  /// Back-pressure: registers what can grow, reservations without access included, so that first touches come to the daemon. A part of all
  /// mappings at a time (`growth`).
  mutating func registerGrowth(_ map: inout MemoryMap, layer: SlotLayer) {
    let start = vs_monotonic_ns()
    guard growth.begin(at: start), var cursor = growth.cursor else { return }
    let spent = Thread.cpuNanoseconds
    while vs_monotonic_ns() - start < 300_000 {
      guard let region = try? map.region(endingAfter: cursor) else {
        growth.cost += Thread.cpuNanoseconds - spent
        return growth.end(at: vs_monotonic_ns())
      }
      cursor = region.end
      guard region.anonymous, region.writable || (region.isNoAccess && region.pages >= Self.reservation) else { continue }
      if !isRegistered(region.start, region.end), enter(region, &map, layer: layer) == .entered { counters.registeredMapping() }
    }
    growth.cost += Thread.cpuNanoseconds - spent
    growth.cursor = cursor
  }

  /// Registers the mapping that holds `page`, if it is not. Returns whether it is now.
  mutating func register(mappingOf page: UInt64, _ map: inout MemoryMap, layer: SlotLayer) -> Bool {
    if registered.contains(page) { return true }
    guard let region = try? map.region(holding: page) else { return false }
    guard enter(region, &map, layer: layer) == .entered else { return false }
    counters.registeredMapping()
    return registered.contains(page)
  }

  /// Pages of a mapping without access from which on it is a reservation of memory rather than a guard.
  private static let reservation: UInt64 = 256

  private func isRegistered(_ start: UInt64, _ end: UInt64) -> Bool {
    guard let known = registered.range(containing: start) else { return false }
    return known.end >= end
  }

  /// Registers a whole mapping: a part would split it, and a split mapping fails the target's own mremap, or leaves it half done.
  ///
  /// The mapping may be another one by the time of the call: what is not registered changes without an event, grows in place, becomes one
  /// with its neighbours. So afterwards the kernel is asked what is there, what was cut off is registered as well, which makes it whole
  /// again, and only then it is entered: if the kernel is quiet and has the mapping registered, it has had all of it since before it was asked.
  mutating func enter(_ region: MappedRegion, _ map: inout MemoryMap, layer: SlotLayer) -> Entry {
    guard region.anonymous, !isPrivate(region.start, region.end), !requestGranted, !pending.isUnsettled else { return .refused }
    if link != nil && !link!.announceRegistration() { return .refused }
    guard case .unmapped = uffd.probe(at: probeAddress) else { return .changing }
    guard tryRegister(region.start, region.end), let whole = makeWhole(region, &map),
      uffd.isRegistered(whole.start * UInt64(pageSize)) == true
    else {
      publishToAgent()
      return .refused
    }
    guard case .unmapped = uffd.probe(at: probeAddress) else {
      publishToAgent()
      return .changing
    }
    forgetUnregistered(whole.start, whole.end, layer: layer)
    registered.insert(from: whole.start, below: whole.end)
    publishToAgent()
    return .entered
  }

  /// What became of a mapping that was to be registered.
  enum Entry {
    case entered
    case refused
    /// The address space is changing: later.
    case changing
  }

  /// false: somebody else's userfaultfd, or no plain memory in the range.
  private func tryRegister(_ start: UInt64, _ end: UInt64) -> Bool {
    (try? uffd.register(start * UInt64(pageSize), (end - start) * UInt64(pageSize))) != nil
  }

  /// What is mapped at the start of a range that was just registered, with the parts of it that had come to it before or behind meanwhile.
  /// nil: nothing of the kind, or it goes on growing.
  private func makeWhole(_ region: MappedRegion, _ map: inout MemoryMap) -> MappedRegion? {
    for _ in 0..<4 {
      guard let now = try? map.region(holding: region.start), now.anonymous, !isPrivate(now.start, now.end) else { return nil }
      let below = now.start > 0 ? try? map.region(holding: now.start - 1) : nil
      let above = try? map.region(holding: now.end)
      let start = isCutOff(below, from: now) ? below!.start : now.start
      let end = isCutOff(above, from: now) ? above!.end : now.end
      if start == now.start && end == now.end { return now }
      guard tryRegister(start, end) else { return now }
    }
    return nil
  }

  /// Whether a neighbour, were it registered, would be one with the mapping.
  private func isCutOff(_ neighbour: MappedRegion?, from region: MappedRegion) -> Bool {
    guard let neighbour, neighbour.anonymous, !neighbour.growsDown else { return false }
    return neighbour.readable == region.readable && neighbour.writable == region.writable
      && !isPrivate(neighbour.start, neighbour.end)
      && uffd.isRegistered(neighbour.start * UInt64(pageSize)) == false
  }

  /// Slots in a range that was not registered are leftovers of a mapping that went without an event (a child's MADV_DONTFORK
  /// range). What is mapped there now never had anything evicted.
  private mutating func forgetUnregistered(_ start: UInt64, _ end: UInt64, layer: SlotLayer) {
    var cursor = start
    while cursor < end {
      let known = registered.firstIntersection(from: cursor, below: end)
      let gapEnd = known?.start ?? end
      if gapEnd > cursor {
        account.swappedChanged(by: -table.removeRange(from: cursor, below: gapEnd, layer: layer))
      }
      cursor = known?.end ?? end
    }
    publishSwapped()
  }

  mutating func publishToAgent() {
    link?.publish(registered: registered.count)
  }
}
