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
    if pending.takeTail(from: low, below: high) { return }
    account.swappedChanged(by: -table.removeRange(from: low, below: high, layer: layer))
    registered.remove(from: low, below: high)
    discarded.remove(from: low, below: high)
    evictable.remove(from: low, below: high)
    publishSwapped()
    settleMoves(layer)
  }

  /// mremap moved the pages.
  mutating func applyRemap(_ from: UInt64, _ to: UInt64, _ length: UInt64, layer: SlotLayer) {
    link?.abandonCommands()
    layoutGeneration += 1
    let move = PendingMoves.Move(
      from: from / UInt64(pageSize), to: to / UInt64(pageSize), count: length / UInt64(pageSize))
    pending.expectTail(of: move)
    if !isOccupied(move) || !pending.deferMove(move) { carryOut(move, layer) }
    settleMoves(layer)
  }

  /// Whether our books have something where the pages went.
  private mutating func isOccupied(_ move: PendingMoves.Move) -> Bool {
    let end = move.to + move.count
    if registered.firstIntersection(from: move.to, below: end) != nil { return true }
    var cursor = move.to
    while let found = table.next(from: cursor, below: end) {
      if PageTableEntry.isSlot(found.entry) { return true }
      cursor = found.vpn + 1
    }
    return false
  }

  /// Carries out deferred moves whose place is free now, until none is left that can be.
  private mutating func settleMoves(_ layer: SlotLayer) {
    var index = 0
    while index < pending.deferredCount {
      if isOccupied(pending[index]) {
        index += 1
      } else {
        carryOut(pending.remove(index), layer)
        index = 0
      }
    }
  }

  /// The kernel is quiet, so every event was read: what is deferred still has waited for nothing.
  mutating func settleAll(_ layer: SlotLayer) {
    pending.forgetTails()
    while pending.deferredCount > 0 { carryOut(pending.remove(0), layer) }
  }

  /// Whether look-ups may rely on the books. If moves are deferred that takes a quiet kernel.
  mutating func isSettled(_ layer: SlotLayer) -> Bool {
    guard pending.deferredCount > 0 else { return true }
    guard case .unmapped = uffd.probe(at: probeAddress) else { return false }
    settleAll(layer)
    return true
  }

  private mutating func carryOut(_ move: PendingMoves.Move, _ layer: SlotLayer) {
    let before = table.slotCount
    let moved = table.moveRange(from: move.from, to: move.to, count: move.count, layer: layer, target: id)
    // The page table has no room for the new place: all that was moved is lost, and is never to be read as zeros.
    if !moved { isBroken = true }
    account.swappedChanged(by: table.slotCount - before)
    registered.move(from: move.from, to: move.to, count: move.count)
    discarded.move(from: move.from, to: move.to, count: move.count)
    evictable.move(from: move.from, to: move.to, count: move.count)
    publishSwapped()
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
    state.isBroken = isBroken
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
