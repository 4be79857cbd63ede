import CUserfault
import CVSwapWire
import Glibc

/// Changes of the address space, in the order in which the kernel tells them. Each runs under the agent's gate when a command is
/// outstanding, after every record has been taken: what has left the target is in the page table, and what has not left yet
/// will not, because the command is abandoned.
extension TargetState {
  /// madvise(MADV_DONTNEED or MADV_FREE). Sent before the kernel drops the pages, and the range stays registered.
  mutating func applyRemove(_ start: UInt64, _ end: UInt64, layer: SlotLayer) {
    let low = start / UInt64(pageSize)
    let high = end / UInt64(pageSize)
    // Bells to be used again.
    if low &- bells < UInt64(VSWAP_BELLS) { return }
    link?.abandonCommands(touching: low, high)
    account.swappedChanged(by: -table.removeRange(from: low, below: high, layer: layer))
    // The agent empties its staging area, from which nothing is evicted.
    if !isPrivate(low, high) { discarded.insert(from: low, below: high) }
    if doubtful.count > 0 { doubtful.remove(from: low, below: high) }
    publishSwapped()
  }

  /// The range is no mapping of ours any more. Sent after the fact: it may be in use again already, but nothing that is new there is
  /// registered, and the kernel refused every MOVE and COPY since before it unmapped.
  mutating func applyUnmap(_ start: UInt64, _ end: UInt64, layer: SlotLayer) {
    layoutGeneration += 1
    let low = start / UInt64(pageSize)
    let high = end / UInt64(pageSize)
    link?.abandonCommands(touching: low, high)
    if pending.concernsMove(low, high) && pending.deferUnmap(low, high) { return }
    forget(low, high, layer)
    settleMoves(layer)
  }

  private mutating func forget(_ low: UInt64, _ high: UInt64, _ layer: SlotLayer) {
    account.swappedChanged(by: -table.removeRange(from: low, below: high, layer: layer))
    registered.remove(from: low, below: high)
    discarded.remove(from: low, below: high)
    if doubtful.count > 0 { doubtful.remove(from: low, below: high) }
    evictable.remove(from: low, below: high)
    look.found.remove(from: low, below: high)
    publishSwapped()
  }

  /// mremap moved the pages.
  mutating func applyRemap(_ from: UInt64, _ to: UInt64, _ length: UInt64, layer: SlotLayer) {
    layoutGeneration += 1
    var move = PendingMoves.Move(
      from: from / UInt64(pageSize), to: to / UInt64(pageSize), count: length / UInt64(pageSize), deferred: false)
    link?.abandonCommands(touching: move.from, move.from + move.count)
    link?.abandonCommands(touching: move.to, move.to + move.count)
    move.deferred = isOccupied(move) || pending.follows(move, before: pending.moveCount)
    if !pending.note(move) || !move.deferred { carryOut(move, layer) }
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
    while pending.deferredCount > 0 && index < pending.moveCount {
      let move = pending[index]
      if !move.deferred || isOccupied(move) || pending.follows(move, before: index) {
        index += 1
      } else {
        pending.carriedOut(index)
        carryOut(move, layer)
        index = 0
      }
    }
  }

  /// Whether look-ups may rely on the books. If something waits that takes a quiet kernel.
  @inline(__always)
  mutating func isSettled(_ buffers: FaultBuffers) -> Bool { !pending.isUnsettled || settle(buffers) }

  /// Without deferred events: forgets about the moves as soon as the kernel is quiet.
  mutating func closeMoves() {
    if pending.moveCount > 0, !pending.isUnsettled, case .unmapped = uffd.probe(at: probeAddress) { pending.forgetMoves() }
  }

  /// The kernel being quiet, every event was read. So a place that is taken still was left by an unmap that waits; and what the other
  /// unmaps were about, the kernel's list tells. false: not quiet.
  @inline(never)
  private mutating func settle(_ buffers: FaultBuffers) -> Bool {
    guard case .unmapped = uffd.probe(at: probeAddress) else { return false }
    for index in 0..<pending.moveCount where pending[index].deferred {
      let move = pending[index]
      for other in stride(from: pending.unmapCount - 1, through: 0, by: -1) {
        let unmap = pending.unmap(other)
        guard unmap.start < move.to + move.count && move.to < unmap.end else { continue }
        pending.removeUnmap(other)
        forget(unmap.start, unmap.end, buffers.layer)
      }
      pending.carriedOut(index)
      carryOut(move, buffers.layer)
    }
    while pending.unmapCount > 0 {
      let unmap = pending.unmap(pending.unmapCount - 1)
      guard forgetUnmapped(unmap.start, unmap.end, buffers) else { return false }
      pending.removeUnmap(pending.unmapCount - 1)
    }
    pending.forgetMoves()
    return true
  }

  /// Forgets the parts of a range that the kernel does not have registered. false: not now. The address space is changing, or its list cannot
  /// be read: then nobody knows what lies there.
  private mutating func forgetUnmapped(_ low: UInt64, _ high: UInt64, _ buffers: FaultBuffers) -> Bool {
    // A young child's list cannot be read yet.
    if link == nil { return forgetUnregisteredPages(low, high, buffers.layer) }
    return forgetUnmapped(low, high, mappings: buffers.pager!.takeUnretainedValue().mappings(low, high), buffers.layer)
  }

  /// Without a list each swapped page is asked for. What unmaps are waiting the child may have from its parent: others than its own, which
  /// may be older than what is mapped there now. Whole ranges stay in `registered` and `discarded`: nothing is evicted before
  /// the child's list was compared.
  mutating func forgetUnregisteredPages(_ low: UInt64, _ high: UInt64, _ layer: SlotLayer) -> Bool {
    var cursor = low
    while let found = table.next(from: cursor, below: high) {
      cursor = found.vpn + 1
      guard PageTableEntry.isSlot(found.entry) else { continue }
      guard let isRegistered = uffd.isRegistered(found.vpn * UInt64(pageSize)) else { return false }
      if !isRegistered { forget(found.vpn, cursor, layer) }
    }
    return true
  }

  mutating func forgetUnmapped(_ low: UInt64, _ high: UInt64, mappings: [MappedRegion]?, _ layer: SlotLayer) -> Bool {
    guard let mappings else { return false }
    var cursor = low
    for region in mappings {
      let start = max(low, region.start)
      let isRegistered: Bool
      switch uffd.isRegistered(start * UInt64(pageSize)) {
      case .some(let answer): isRegistered = answer
      case .none: return false
      }
      if cursor < start { forget(cursor, start, layer) }
      cursor = min(high, region.end)
      if !isRegistered { forget(start, cursor, layer) }
    }
    if cursor < high { forget(cursor, high, layer) }
    return true
  }

  private mutating func carryOut(_ move: PendingMoves.Move, _ layer: SlotLayer) {
    moves += 1
    let before = table.slotCount
    let moved = table.moveRange(from: move.from, to: move.to, count: move.count, layer: layer, target: id)
    // The page table has no room for the new place: all that was moved is lost, and is never to be read as zeros.
    if !moved { isBroken = true }
    account.swappedChanged(by: table.slotCount - before)
    registered.move(from: move.from, to: move.to, count: move.count)
    discarded.move(from: move.from, to: move.to, count: move.count)
    doubtful.move(from: move.from, to: move.to, count: move.count)
    evictable.move(from: move.from, to: move.to, count: move.count)
    look.found.move(from: move.from, to: move.to, count: move.count)
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
    state.bells = bells
    state.pending.destroy()
    state.pending = pending.copy()
    // What the parent discards is the parent's; the child got its own view of those pages, whatever it is.
    for index in 0..<registered.count {
      state.registered.insert(from: registered[index].start, below: registered[index].end)
    }
    for index in 0..<doubtful.count { state.doubtful.insert(from: doubtful[index].start, below: doubtful[index].end) }
    account.swappedChanged(by: state.table.slotCount)
    state.publishSwapped()
    return state
  }
}
