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
    let asked = dead.bury { run in
      let page = run.address / UInt64(pageSize)
      doubtful.insert(from: page, below: page + UInt64(run.pages))
    }
    dead.leave()
    link = dead
    layer.budget.release(asked)
    counters.askedSince = 0
  }

  private mutating func drainOnce(_ buffers: FaultBuffers, _ faults: inout Int) -> DrainOutcome {
    if link != nil && link!.isOutstanding {
      if case .violation(let what) = takeEvicted(buffers.layer) { return .violation(what) }
    }
    for _ in 0..<Self.mostReads {
      let count = uffd.read(into: buffers.messages, capacity: FaultBuffers.messageCapacity)
      // A child's descriptor is about to be its agent's as well: who shares it is not known yet.
      if count == Userfault.blocked && link != nil { return .violation("the userfaultfd's O_NONBLOCK was cleared") }
      if count < 0 { return .again }
      for index in 0..<count { take(buffers.messages[index], buffers, &faults) }
      if count < FaultBuffers.messageCapacity { return serveAll(buffers, &faults) }
    }
    // It tells faster than can be read. Others have their turn.
    return .again
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
  mutating func endRefusal() {
    let now = vs_monotonic_ns()
    if refusedSince == 0 { refusedSince = now }
    guard now - refusedSince > 5_000_000 else { return }
    for index in 0..<waitingCount {
      let growth = vs_growth_of_mremap(waiting[index].thread)
      guard growth > 0 else { continue }
      uffd.unregister(waiting[index].address, growth)
      let page = waiting[index].address / UInt64(pageSize)
      registered.remove(from: page, below: page + growth / UInt64(pageSize))
      refusedSince = now
    }
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
