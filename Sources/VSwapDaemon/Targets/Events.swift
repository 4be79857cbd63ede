import CUserfault
import Glibc

/// Changes of the address space, in the order in which the kernel tells them. Each runs under the agent's gate when a command is
/// outstanding, after every record has been taken: what has left the target is in the page table, and what has not left yet
/// will not, because the command is abandoned.
extension TargetState {
  /// madvise(MADV_DONTNEED or MADV_FREE). Sent before the kernel drops the pages, and the range stays registered.
  mutating func applyRemove(_ start: UInt64, _ end: UInt64, layer: SlotLayer) {
    link?.abandonCommands()
    let low = start / UInt64(pageSize)
    let high = end / UInt64(pageSize)
    account.swappedChanged(by: -table.removeRange(from: low, below: high, layer: layer))
    discarded.insert(from: low, below: high)
    publishSwapped()
  }

  /// The range is no mapping of ours any more. Sent after the fact: it may be in use again already, but nothing that is new there is
  /// registered, and the kernel refused every MOVE and COPY since before it unmapped.
  mutating func applyUnmap(_ start: UInt64, _ end: UInt64, layer: SlotLayer) {
    link?.abandonCommands()
    layoutGeneration += 1
    let low = start / UInt64(pageSize)
    let high = end / UInt64(pageSize)
    account.swappedChanged(by: -table.removeRange(from: low, below: high, layer: layer))
    registered.remove(from: low, below: high)
    discarded.remove(from: low, below: high)
    evictable.remove(from: low, below: high)
    publishSwapped()
  }

  /// mremap moved the pages. false: the page table has no room for the new place, so that everything moved is lost.
  mutating func applyRemap(_ from: UInt64, _ to: UInt64, _ length: UInt64, layer: SlotLayer) -> Bool {
    link?.abandonCommands()
    layoutGeneration += 1
    let source = from / UInt64(pageSize)
    let destination = to / UInt64(pageSize)
    let count = length / UInt64(pageSize)
    let before = table.slotCount
    let moved = table.moveRange(from: source, to: destination, count: count, layer: layer, target: id)
    account.swappedChanged(by: table.slotCount - before)
    registered.move(from: source, to: destination, count: count)
    discarded.move(from: source, to: destination, count: count)
    evictable.move(from: source, to: destination, count: count)
    publishSwapped()
    return moved
  }

  /// The child's state: the same slots with one more reference each. The parent's records have all been taken, so evictions in
  /// flight are among them, or will not happen.
  mutating func fork(
    uffd child: Userfault, id childID: UInt32, token childToken: UInt64, counters childCounters: TargetCounters,
    layer: SlotLayer
  ) throws(KernelError) -> TargetState {
    link?.abandonCommands()
    var state = TargetState(
      id: childID, token: childToken, uffd: child, account: account, counters: childCounters, link: nil, processID: 0,
      table: try table.clone(layer: layer, target: childID), attach: .init())
    state.privateRanges = privateRanges
    state.identityPage = identityPage
    // What the parent discards is the parent's; the child got its own view of those pages, whatever it is.
    for index in 0..<registered.count {
      state.registered.insert(from: registered[index].start, below: registered[index].end)
    }
    account.swappedChanged(by: state.table.slotCount)
    state.publishSwapped()
    return state
  }
}
