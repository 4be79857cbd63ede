import CUserfault
import Glibc

/// Which mappings of a target are registered, and which may be evicted from.
extension TargetState {
  /// Looks at smaps again: mappings that are private, anonymous, writable, and not locked, wiped at fork, or somebody's stack.
  mutating func refreshEvictable(_ map: inout MemoryMap) throws(KernelError) {
    let generation = layoutGeneration
    let regions = try map.regions(withFlags: true)
    evictable.removeAll()
    for region in regions where region.anonymous && region.writable && !region.excluded {
      if !isPrivate(region.start, region.end) { evictable.insert(from: region.start, below: region.end) }
    }
    evictableGeneration = generation
    sweep.refreshedAt = vs_monotonic_ns()
  }

  /// Back-pressure: registers all that can grow, reservations without access included, so that first touches come to the daemon.
  mutating func registerGrowth(_ map: inout MemoryMap, layer: SlotLayer) throws(KernelError) {
    for region in try map.regions(withFlags: false) where region.anonymous {
      guard region.writable || (region.isNoAccess && region.end - region.start >= Self.reservation) else { continue }
      if isPrivate(region.start, region.end) || isRegistered(region.start, region.end) { continue }
      _ = register(region.start, region.end, layer: layer)
    }
  }

  /// Pages of a mapping without access from which on it is a reservation of memory rather than a guard.
  private static let reservation: UInt64 = 256

  private func isRegistered(_ start: UInt64, _ end: UInt64) -> Bool {
    guard let known = registered.range(containing: start) else { return false }
    return known.end >= end
  }

  /// Registers a whole mapping: a part would split it, and a split mapping fails the target's own mremap. Returns whether it is registered now.
  /// Not while the address space changes: what smaps showed may be something else by now.
  mutating func register(_ start: UInt64, _ end: UInt64, layer: SlotLayer) -> Bool {
    if isRegistered(start, end) { return true }
    if requestGranted { return false }
    guard case .unmapped = uffd.probe(at: probeAddress) else { return false }
    forgetUnregistered(start, end, layer: layer)
    do {
      try uffd.register(start * UInt64(pageSize), (end - start) * UInt64(pageSize))
    } catch {
      // Somebody else's userfaultfd, or no plain memory any more.
      return false
    }
    registered.insert(from: start, below: end)
    publishToAgent()
    return true
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

  func publishToAgent() {
    link?.publish(registered: registered.count, held: table.slotCount)
  }
}
