import CUserfault
import Glibc

/// Which mappings of a target are registered, and which may be evicted from.
extension TargetState {
  /// Looks at smaps again: mappings that are private, anonymous, writable, and not locked, wiped at fork, or somebody's stack. false: it could
  /// not be read, or what it shows is changing.
  mutating func refreshEvictable(_ map: inout MemoryMap) -> Bool {
    let generation = layoutGeneration
    guard let regions = try? map.regions(withFlags: true) else { return false }
    // Events are read by this thread alone. So if none is unread now, none was when smaps was read.
    var isQuiet = false
    if !pending.isUnsettled, case .unmapped = uffd.probe(at: probeAddress) { isQuiet = true }
    if isQuiet {
      forgetUntracked(regions)
      isCompared = true
    }
    // Under threads that map and unmap without a pause a list that is about to change is better than none: it only says where to try,
    // and events that are unread yet take out of it what they are about. Nothing is registered without a quiet kernel.
    guard isCompared else { return false }
    evictable.removeAll()
    for region in regions where region.anonymous && region.writable && !region.excluded {
      if !isPrivate(region.start, region.end) { evictable.insert(from: region.start, below: region.end) }
    }
    if isQuiet { evictableGeneration = generation }
    sweep.refreshedAt = vs_monotonic_ns()
    return true
  }

  /// What the kernel does not have registered leaves `registered`. A child has it from its parent, but not the mappings that were not
  /// copied (MADV_DONTFORK); and shmat(SHM_REMAP) replaces a mapping without an event. Evicting from such a place would lose the page.
  private mutating func forgetUntracked(_ regions: [MappedRegion]) {
    var cursor: UInt64 = 0
    for region in regions {
      if region.start > cursor { registered.remove(from: cursor, below: region.start) }
      if !region.tracksMissing { registered.remove(from: region.start, below: region.end) }
      cursor = region.end
    }
    registered.remove(from: cursor, below: .max)
    publishToAgent()
  }

  /// Back-pressure: registers all that can grow, reservations without access included, so that first touches come to the daemon.
  mutating func registerGrowth(_ map: inout MemoryMap, layer: SlotLayer) throws(KernelError) {
    let regions = try map.regions(withFlags: false)
    for index in regions.indices {
      let region = regions[index]
      guard region.anonymous, region.writable || (region.isNoAccess && region.pages >= Self.reservation) else { continue }
      if !isRegistered(region.start, region.end) { _ = register(regions, index, layer: layer) }
    }
  }

  /// Registers the mapping that holds `page`, if it is not. Returns whether it is now.
  mutating func register(mappingOf page: UInt64, _ map: inout MemoryMap, layer: SlotLayer) -> Bool {
    if registered.contains(page) { return true }
    guard let regions = try? map.regions(withFlags: false),
      let index = regions.firstIndex(where: { $0.start <= page && page < $0.end })
    else { return false }
    return register(regions, index, layer: layer)
  }

  /// Pages of a mapping without access from which on it is a reservation of memory rather than a guard.
  private static let reservation: UInt64 = 256

  private func isRegistered(_ start: UInt64, _ end: UInt64) -> Bool {
    guard let known = registered.range(containing: start) else { return false }
    return known.end >= end
  }

  /// Registers a whole mapping: a part would split it, and a split mapping fails the target's own mremap, or leaves it half done.
  ///
  /// mremap grows a mapping in place without any event, at any moment, into the hole behind it; and a program that fills memory maps its next
  /// piece into the hole before it. So what is registered reaches from mapping to mapping: the kernel takes whatever is in the
  /// range at that instant. Not while the address space changes in ways that are told: what the list shows may be something else by now.
  private mutating func register(_ regions: [MappedRegion], _ index: Int, layer: SlotLayer) -> Bool {
    let region = regions[index]
    guard region.anonymous, !isPrivate(region.start, region.end), !requestGranted, !pending.isUnsettled else { return false }
    if link != nil && !link!.announceRegistration() { return false }
    guard case .unmapped = uffd.probe(at: probeAddress) else { return false }
    forgetUnregistered(region.start, region.end, layer: layer)
    let ceiling = Self.ceiling(regions, index)
    // Where the hole in front was taken by something else meanwhile, the mapping itself may still do.
    guard tryRegister(Self.floor(regions, index), ceiling) || tryRegister(region.start, ceiling) else {
      publishToAgent()
      return false
    }
    registered.insert(from: region.start, below: region.end)
    counters.registeredMapping()
    publishToAgent()
    return true
  }

  /// false: somebody else's userfaultfd, or no plain memory in the range.
  private func tryRegister(_ start: UInt64, _ end: UInt64) -> Bool {
    (try? uffd.register(start * UInt64(pageSize), (end - start) * UInt64(pageSize))) != nil
  }

  /// The end of the mapping before, or the start of this one where there is none.
  private static func floor(_ regions: [MappedRegion], _ index: Int) -> UInt64 {
    index > 0 ? min(regions[index].start, regions[index - 1].end) : regions[index].start
  }

  /// The start of the next mapping, below which this one can grow; half way to it if that is the stack, which grows towards us.
  private static func ceiling(_ regions: [MappedRegion], _ index: Int) -> UInt64 {
    let end = regions[index].end
    guard index + 1 < regions.count else { return end }
    let next = regions[index + 1]
    if next.growsDown { return end + (next.start - end) / 2 }
    return max(end, min(next.start, highestPage))
  }

  /// End of the user's half of a 47-bit address space.
  private static let highestPage: UInt64 = (1 << 47) / UInt64(pageSize) - 1

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
