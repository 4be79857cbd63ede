import CUserfault
import Glibc

/// What `drain` found out about the target.
enum DrainOutcome {
  case drained
  /// An event's thread has not run yet, so the kernel still refuses to fill pages: come back soon.
  case again
  /// The agent keeps the gate: nothing was read or filled, and nothing may be before it has left.
  case kept
  /// The address space has gone.
  case gone
  case violation(StaticString)
}

extension TargetState {
  /// Reads everything the kernel has to tell, applies every event, then serves the faults: in that order, since the kernel hands out
  /// faults before the events that came first. If a command is with the agent all of it happens under the gate.
  mutating func drain(_ buffers: FaultBuffers) -> DrainOutcome {
    var faults = 0
    var yields = 0
    while true {
      guard enterGate(buffers.layer) else {
        setAside(faults, buffers)
        return .kept
      }
      let outcome = drainOnce(buffers, &faults)
      link?.leave()
      guard case .again = outcome else { return outcome }
      yields += 1
      if yields > 64 {
        setAside(faults, buffers)
        // The descriptor stays readable, and nothing tells when there is room for another one.
        if isShortOfDescriptors { usleep(1000) }
        return .again
      }
      sched_yield()
    }
  }

  /// Takes the agent's gate, if a command is with it. false: it is kept from us.
  @inline(__always)
  mutating func enterGate(_ layer: SlotLayer) -> Bool {
    guard link != nil else { return true }
    switch link!.enter() {
    case .entered: return true
    case .kept: return false
    case .dead:
      buryAgent(layer)
      return true
    }
  }

  /// The agent died between a MOVE and its record, at most 16 pages. They are in the staging area, and which of the pages that it was
  /// to move they are is known to nobody. The address space lives on where the process executes something else, until its vfork children have
  /// done so, too. They must not read zeros there.
  @inline(never)
  private mutating func buryAgent(_ layer: SlotLayer) {
    // What is no record will be none: a violation does not matter any more.
    _ = takeEvicted(layer)
    var dead = link!
    dead.bury { run in
      let page = run.address / UInt64(pageSize)
      doubtful.insert(from: page, below: page + UInt64(run.pages))
      table.letGo(from: page, below: page + UInt64(run.pages))
    }
    dead.leave()
    link = dead
    counters.askedSince = 0
  }

  private mutating func drainOnce(_ buffers: FaultBuffers, _ faults: inout Int) -> DrainOutcome {
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    for _ in 0..<Self.mostReads {
      let count = uffd.read(into: buffers.messages, capacity: FaultBuffers.messageCapacity)
      // A child's descriptor is about to be its agent's as well: who shares it is not known yet.
      if count == Userfault.blocked {
        if link != nil { return .violation("the userfaultfd's O_NONBLOCK was cleared") }
        return .again
      }
      if count < 0 {
        makeRoom(afterError: Int32(-count))
        return .again
      }
      isShortOfDescriptors = false
      for index in 0..<count { take(buffers.messages[index], buffers, &faults) }
      if count < FaultBuffers.messageCapacity { return serveAll(buffers, &faults) }
    }
    // It tells faster than can be read. Others have their turn.
    return .again
  }

  /// A child must not be lost: what is kept for that is given up now. With nothing left the fork waits.
  @inline(never)
  private mutating func makeRoom(afterError code: Int32) {
    guard KernelError(call: "read", code: code).isLackOfDescriptors else { return }
    isShortOfDescriptors = !table.descriptors.giveUp(1)
  }
  /// Some 16,000 messages, which no honest program has for us at a time.
  private static let mostReads = 256

  @inline(__always)
  private mutating func take(_ message: uffd_msg, _ buffers: FaultBuffers, _ faults: inout Int) {
    switch Userfault.decode(message) {
    case .fault(let address, let write, let thread):
      if faults < FaultBuffers.faultCapacity {
        buffers.faults[faults] = Fault(address: address, thread: thread, write: write)
        faults += 1
      } else {
        uffd.wake(address, length: pageSize)
      }
    case .remove(let start, let end): applyRemove(start, end, layer: buffers.layer)
    case .unmap(let start, let end): applyUnmap(start, end, layer: buffers.layer)
    case .remap(let from, let to, let length):
      applyRemap(from, to, length, layer: buffers.layer)
    case .fork(let descriptor): take(fork: descriptor, buffers)
    case .unknown: break
    }
  }

  /// Out of line: the one event that allocates.
  @inline(never)
  private mutating func take(fork descriptor: Int32, _ buffers: FaultBuffers) {
    buffers.pager!.takeUnretainedValue().childForked(of: &self, Userfault(descriptor: descriptor))
  }

  private mutating func serveAll(_ buffers: FaultBuffers, _ faults: inout Int) -> DrainOutcome {
    if !isSettled(buffers) { return .again }
    if faults == 0 { closeMoves() }
    var served = 0
    while served < faults {
      switch serve(buffers.faults[served], buffers) {
      case .done: served += 1
      case .changing:
        // Look up again after the event: keep what is left.
        for index in served..<faults { buffers.faults[index - served] = buffers.faults[index] }
        faults -= served
        return .again
      case .gone: return .gone
      }
    }
    faults = 0
    return .drained
  }

  /// Keeps faults that cannot be served now for the next drain.
  private mutating func setAside(_ faults: Int, _ buffers: FaultBuffers) {
    for index in 0..<faults { keep(buffers.faults[index]) }
  }

  /// Ends a dead end in the kernel: mremap lets a locked mapping grow, and touches the new pages (mm_populate) before it sends its event.
  /// Until that event is read nothing can be filled, and the event does not come until the pages are. The new pages hold nothing, so they can do
  /// without us: unregistered, the kernel fills them itself. They are registered again like any other growth.
  mutating func endRefusal(_ layer: SlotLayer) {
    let now = vs_monotonic_ns()
    if refusedSince == 0 { refusedSince = now }
    guard now - refusedSince > 5_000_000, waitingCount > 0 else { return }
    // What the agent has moved is in the books, and it moves nothing until the pages are let go of.
    guard enterGate(layer) else { return }
    defer { link?.leave() }
    if link != nil && link!.isOutstanding {
      guard case .taken = takeEvicted(layer) else { return }
    }
    for index in 0..<waitingCount {
      let growth = vs_growth_of_mremap(waiting[index].thread)
      guard let pages = growingPages(growth, at: waiting[index].address) else { continue }
      link?.abandonCommands(touching: pages.lowerBound, pages.upperBound)
      uffd.unregister(waiting[index].address, UInt64(pages.count) * UInt64(pageSize))
      registered.remove(from: pages.lowerBound, below: pages.upperBound)
      refusedSince = now
    }
  }

  /// The pages from `address` on that a growing mremap is about to touch, and that hold nothing. nil: the fault is another's, or something of the
  /// program is out there. A thread's number may be that of a thread elsewhere (the target's are those of its own PID namespace), and a fault that a
  /// signal has interrupted waits on under the number of a thread that is somewhere else by now.
  mutating func growingPages(_ growth: vs_growth, at address: UInt64) -> Range<UInt64>? {
    guard growth.length > 0 else { return nil }
    let page = address / UInt64(pageSize)
    guard growth.start == 0 else {
      // The call says where. What the books have there was replaced by it: the event is sent after the pages were touched.
      guard address >= growth.start, address - growth.start < growth.length else { return nil }
      return page..<page + (growth.length - (address - growth.start)) / UInt64(pageSize)
    }
    let end = page + growth.length / UInt64(pageSize)
    var cursor = page
    while let found = table.next(from: cursor, below: end) {
      if PageTableEntry.isSlot(found.entry) { return nil }
      cursor = found.vpn + 1
    }
    return page..<end
  }

  /// Serves threads that waited for room. Those for whom there still is none wait on.
  mutating func serveWaiting(_ buffers: FaultBuffers) -> DrainOutcome {
    guard waitingCount > 0 else { return .drained }
    guard enterGate(buffers.layer) else { return .kept }
    var faults = waitingCount
    for index in 0..<faults { buffers.faults[index] = waiting[index] }
    waitingCount = 0
    var outcome = DrainOutcome.drained
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { outcome = .violation(what) }
    }
    if case .drained = outcome { outcome = serveAll(buffers, &faults) }
    link?.leave()
    if case .again = outcome { setAside(faults, buffers) }
    return outcome
  }
}
