import CUserfault
import CVSwapWire

/// New memory that a thread announces before it uses it: near the limit nothing is to grow unseen. The program may say what it likes; the kernel is
/// asked what is there, and only the program's own memory is registered or evicted by it.
extension TargetState {
  /// Before the target is told that it is served.
  mutating func registerBells() {
    guard let first = link?.bells, first != 0, first % UInt64(pageSize) == 0, first < UInt64.max / 4,
      MappingLookup(descriptor: maps).works,
      (try? uffd.register(first, UInt64(VSWAP_BELLS) * UInt64(pageSize))) != nil
    else { return }
    bells = first / UInt64(pageSize)
    publishAnnounceFrom()
  }

  /// How much is to be announced: all near the limit; far from it what would not be far from it any more.
  func publishAnnounceFrom() {
    guard bells < UInt64.max / 4, let link else { return }
    var pages = UInt32.max
    if let limit = account.limit {
      pages = account.isNearLimit ? 1 : UInt32(clamping: GroupAccount.closeness(toLimit: limit) / 4)
    }
    link.publish(announceFrom: pages)
  }

  /// A thread has touched a bell. Out of line: registering may take a list of mappings.
  @inline(never)
  mutating func serveAnnouncement(_ fault: Fault, _ index: Int, _ buffers: FaultBuffers) -> ServiceOutcome {
    if !isBroken, let announced = link?.announcement(index) {
      let pager = buffers.pager!.takeUnretainedValue()
      if pager.enterAnnounced(announced, index, of: &self) == .changing { return .changing }
    }
    return finish(uffd.zero(fault.address, length: pageSize), fault)
  }

  /// Registers the mappings of a range, a few at most: what is announced is one as a rule.
  mutating func enterAnnounced(
    _ range: (start: UInt64, end: UInt64, isPlain: Bool), _ index: Int, _ map: inout MemoryMap, layer: SlotLayer
  ) -> Entry {
    var cursor = range.start
    for _ in 0..<8 {
      guard cursor < range.end, let region = try? map.region(endingAfter: cursor), region.start < range.end else { break }
      cursor = region.end
      guard region.anonymous, region.writable else { continue }
      if registered.range(containing: region.start).map({ $0.end < region.end }) ?? true {
        switch enter(region, &map, layer: layer) {
        case .entered: break
        case .refused:
          // A thread is under way in a call that the daemon was asked for: later.
          growth.isWanted = true
          continue
        case .changing: return .changing
        }
      }
      guard let known = registered.range(containing: region.start) else { continue }
      link!.answer(index, start: known.start, end: known.end)
      // What it has become one with may be somebody's stack.
      noteEvictable(max(known.start, range.start), min(known.end, region.end, range.end), isPlain: range.isPlain)
    }
    return .entered
  }

  /// Memory as mmap makes it may be evicted without a look at smaps.
  private mutating func noteEvictable(_ start: UInt64, _ end: UInt64, isPlain: Bool) {
    guard start < end, evictable.range(containing: start).map({ $0.end < end }) ?? true else { return }
    guard isPlain, isCompared else {
      layoutGeneration += 1
      return
    }
    evictable.insert(from: start, below: end)
    if look.cursor > start { look.found.insert(from: start, below: end) }
  }
}
