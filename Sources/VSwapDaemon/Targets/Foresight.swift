import CUserfault

/// What a fault tells about those that will come, and pages that nobody waits for yet. On the pager's thread, as the fault path.
extension TargetState {
  /// How many pages from `page` on, itself included, how many below it, and which in steps to bring in along with it. May be asked several times for
  /// one fault, before anything of it was brought.
  mutating func foresee(_ page: UInt64) -> (ahead: Int, behind: Int, stride: Strides.Plan?) {
    let expected = streams.expected(insteadOf: page)
    let isSkipping = expected.map { PageTableEntry.isSlot(table.entry($0)) } ?? false
    let (ahead, behind) = streams.fault(page, isSkipping: isSkipping)
    // Where those between are resident sequence and stride are one.
    let stride = strides.fault(page, isAlone: expected != nil || ahead + behind == 1)
    return (ahead, behind, stride)
  }

  /// How many pages a fault may bring in: with little room below the limit what is asked for goes first.
  var roomAhead: Int { max(1, account.room / 16) }

  /// Maps the next pages of a stride if they are in RAM, one by one, and starts reads of those in swap areas. What could not be mapped stays where it
  /// is.
  mutating func bringStride(_ plan: Strides.Plan, _ buffers: FaultBuffers) {
    let most = min(plan.count, roomAhead - 1)
    var count = 0
    while count < most, bringOne(plan.page(count), buffers) { count += 1 }
    strides.brought(plan, count)
  }

  /// false: the page stays out, and the next ones would, too. One that is in the target is none of ours.
  private mutating func bringOne(_ page: UInt64, _ buffers: FaultBuffers) -> Bool {
    let entry = table.entry(page)
    guard PageTableEntry.isSlot(entry) else { return true }
    let loaded = buffers.layer.load(entry, into: buffers.bounce, codec: buffers.codec)
    if case .area(let word) = loaded { return readOne(page, entry, word, buffers) }
    guard isInRAM(loaded),
      case .filled = uffd.copy(to: page * UInt64(pageSize), from: buffers.bounce, length: pageSize)
    else { return false }
    leaveSlot(page, entry, chances: 0, copyOf: buffers.bounce, buffers.layer)
    account.mapped(pages: 1)
    return true
  }

  private func readOne(_ page: UInt64, _ slot: SlotNumber, _ word: SlotWord, _ buffers: FaultBuffers) -> Bool {
    // As for a stream: close to the limit what a read brings would not be mapped.
    guard account.room >= 64 else { return false }
    if buffers.reader.isBringing(token, word) { return true }
    let fault = Fault(address: page * UInt64(pageSize), thread: Fault.ahead, write: false)
    // What lies around was evicted with it, and is not wanted.
    if case .underWay = buffers.reader.start(fault, token: token, slot: slot, word: word, around: false) { return true }
    return false
  }
}
