import CUserfault
import CVSwapWire
import Glibc

/// The daemon's end of a target's ring: the gate, two command banks and the frames that evicted pages arrive in.
///
/// Used by the target's pager alone. Everything the agent can write is untrusted: it is read once, copied, and checked against the
/// command that was given. A bank goes idle -> submitted -> (records arrive) -> finished -> idle.
struct AgentLink {
  private let ring: OpaquePointer
  /// Eventfd on which the agent tells that something happened.
  let doorbell: Int32
  /// Attach socket; readable when the agent has gone.
  let socket: Int32
  /// Pidfd of the program, whose memory the agent shares; readable when it has ended.
  let program: Int32
  /// The agent was told to end.
  private(set) var isDismissed = false
  private let ringMapping: Mapping
  private let banks: UnsafeMutablePointer<BankState>
  private var sequence: UInt32 = 0
  private var gateHeld = false
  /// Monotonic nanoseconds since which the agent has kept the gate from the pager; 0: it does not.
  private(set) var keptSince: UInt64 = 0
  /// It has gone: no command is given any more.
  private var isDead = false
  /// `registered` is not 0, and since it is nobody has been seen who had not looked at it.
  private var isAnnounced = false
  /// Somebody had not looked yet when a registration was announced last.
  private var isAnnouncing = false

  /// The daemon's own copy of a command: what the agent's records are checked against.
  struct BankState {
    var busy = false
    var sequence: UInt32 = 0
    var runCount = 0
    var pages = 0
    var recordsTaken = 0
    var framesTaken = 0
    /// Monotonic nanoseconds.
    var givenAt: UInt64 = 0
    var runs: UnsafeMutablePointer<vswap_run>
  }

  /// Pages [page, page + count) left the target; the first one's content is at `content`.
  struct Evicted {
    let page: UInt64
    let count: Int
    let content: UnsafeRawPointer
  }

  enum Next {
    case evicted(Evicted)
    case none
    case violation(StaticString)
  }

  init(socket: Int32, program: Int32, ring: Mapping, doorbell: Int32) {
    self.socket = socket
    self.program = program
    self.doorbell = doorbell
    ringMapping = ring
    self.ring = vswap_ring_at(ring.base)
    banks = .allocate(capacity: Self.bankCount)
    for index in 0..<Self.bankCount {
      (banks + index).initialize(to: BankState(runs: .allocate(capacity: Self.bankPages)))
    }
  }

  func destroy() {
    for index in 0..<Self.bankCount { banks[index].runs.deallocate() }
    banks.deallocate()
    ringMapping.destroy()
    close(doorbell)
    close(socket)
    close(program)
  }

  static let bankCount = Int(VSWAP_BANKS)
  static let bankPages = Int(VSWAP_BANK_PAGES)

  // MARK: - The gate

  /// Whether a command is with the agent: then every look-up and fill happens under the gate.
  var isOutstanding: Bool {
    for index in 0..<Self.bankCount where banks[index].busy { return true }
    return false
  }

  /// What `enter` found.
  enum Entry {
    case entered
    /// The agent has the gate, and had it for longer than an agent takes that runs: it is stopped, or lies. Nothing may be
    /// read, looked up or filled.
    case kept
    /// The agent died with the gate in its hand, which the pager has now: see `bury`.
    case dead
  }

  /// Takes the gate if a command is outstanding. Waits for as long as an agent may be without a CPU; once one was
  /// waited for in vain, not at all until it was there again.
  @inline(__always)
  mutating func enter() -> Entry {
    guard isOutstanding else { return .entered }
    return takeGate()
  }

  /// The same without waiting. false: the agent has the gate.
  mutating func tryEnter() -> Bool {
    guard isOutstanding else { return true }
    gateHeld = vswap_replace(vswap_gate(ring)!, 0, 1) != 0
    if gateHeld { keptSince = 0 }
    return gateHeld
  }

  private mutating func takeGate() -> Entry {
    if vswap_replace(vswap_gate(ring)!, 0, 1) != 0 {
      (gateHeld, keptSince) = (true, 0)
      return .entered
    }
    return waitForGate()
  }

  /// An agent holds the gate for some 20 us.
  private static let patience: UInt64 = 10_000_000

  @inline(never)
  private mutating func waitForGate() -> Entry {
    let gate = vswap_gate(ring)!
    let start = vs_monotonic_ns()
    while keptSince == 0 {
      if vswap_exchange(gate, 2) == 0 {
        gateHeld = true
        return .entered
      }
      _ = vs_futex_wait(gate, 2, 5)
      if agentHasGone { break }
      if vs_monotonic_ns() - start > Self.patience { keptSince = start }
    }
    guard agentHasGone else { return .kept }
    (gateHeld, keptSince) = (true, 0)
    return .dead
  }

  @inline(__always)
  mutating func leave() {
    guard gateHeld else { return }
    gateHeld = false
    let gate = vswap_gate(ring)!
    if vswap_exchange(gate, 0) == 2 { _ = vs_futex_wake(gate, 1) }
  }

  /// Under the gate: whatever the agent has not moved yet of the commands it has, it will not move.
  func abandonCommands() {
    _ = vswap_add(vswap_generation(ring)!, 1)
  }

  /// The same, if a command has pages of [low, high). What the others chose is as it was.
  func abandonCommands(touching low: UInt64, _ high: UInt64) {
    let start = low * UInt64(pageSize)
    let end = high * UInt64(pageSize)
    for bank in 0..<Self.bankCount where banks[bank].busy {
      for index in 0..<banks[bank].runCount {
        let run = banks[bank].runs[index]
        guard run.address < end && start < run.address + UInt64(run.pages) * UInt64(pageSize) else { continue }
        abandonCommands()
        return
      }
    }
  }

  var agentHasGone: Bool {
    var descriptor = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
    return poll(&descriptor, 1, 0) > 0
  }

  // MARK: - Commands

  /// Pages of the commands that the agent has.
  var outstandingPages: Int {
    var pages = 0
    for index in 0..<Self.bankCount where banks[index].busy { pages += banks[index].pages }
    return pages
  }

  /// Monotonic nanoseconds when the oldest command was given that the agent has not ended; 0: it has none.
  var askedSince: UInt64 {
    var since: UInt64 = 0
    for index in 0..<Self.bankCount where banks[index].busy && (since == 0 || banks[index].givenAt < since) {
      since = banks[index].givenAt
    }
    return since
  }

  /// The agent has died with the gate in its hand, and every record that it published was taken: ends all commands. `body` gets the runs
  /// of pages that it may have been at. Returns the pages that were asked for.
  mutating func bury(_ body: (vswap_run) -> Void) -> Int {
    var asked = 0
    for bank in 0..<Self.bankCount where banks[bank].busy {
      for index in 0..<banks[bank].runCount { body(banks[bank].runs[index]) }
      banks[bank].busy = false
      asked += banks[bank].pages
    }
    isDead = true
    return asked
  }

  /// An idle bank, or nil.
  func idleBank() -> Int? {
    if isDead { return nil }
    for index in 0..<Self.bankCount where !banks[index].busy { return index }
    return nil
  }

  /// Where to write the runs of the next command for a bank: room for `bankPages` of them.
  func runs(of bank: Int) -> UnsafeMutablePointer<vswap_run> { banks[bank].runs }

  /// Hands the first `count` runs, `pages` pages in all, to the agent.
  mutating func submit(bank: Int, runs count: Int, pages: Int) {
    sequence &+= 1
    banks[bank].busy = true
    banks[bank].sequence = sequence
    banks[bank].runCount = count
    banks[bank].pages = pages
    banks[bank].recordsTaken = 0
    banks[bank].framesTaken = 0
    banks[bank].givenAt = vs_monotonic_ns()
    vswap_give(ring, UInt32(bank), sequence, banks[bank].runs, UInt32(count))
    ringAgent()
  }

  /// Tells the agent to end. Nothing may be registered or outstanding any more, or the program has gone.
  mutating func dismissAgent() {
    isDismissed = true
    vswap_store(vswap_leave(ring)!, 1)
    ringAgent()
  }

  /// The agent says that the thread which the program began with has ended, or executes something else.
  var isDeserted: Bool { vswap_load(vswap_deserted(ring)!) != 0 }

  private func ringAgent() {
    let bell = vswap_doorbell(ring)!
    _ = vswap_add(bell, 1)
    _ = vs_futex_wake(bell, 1)
  }

  /// The next pages that left the target, in the order in which they left. Call until `.none` before any look-up.
  mutating func nextEvicted() -> Next {
    for offset in 0..<Self.bankCount {
      let bank = oldest(after: offset)
      guard banks[bank].busy else { continue }
      let next = nextEvicted(of: bank)
      if case .none = next { continue }
      return next
    }
    return .none
  }

  /// Banks in the order of their commands: with two of them the older one first.
  private func oldest(after offset: Int) -> Int {
    let first = Int32(bitPattern: banks[0].sequence &- banks[1].sequence) < 0 ? 0 : 1
    return (first + offset) % Self.bankCount
  }

  private mutating func nextEvicted(of bank: Int) -> Next {
    let produced = Int(vswap_records(ring, UInt32(bank)))
    guard produced <= Self.bankPages else { return .violation("more records than a bank holds") }
    let taken = banks[bank].recordsTaken
    guard taken < produced else { return .none }
    let record = vswap_record_at(ring, UInt32(bank), UInt32(taken))
    let frame = banks[bank].framesTaken
    guard Int(record.run) < banks[bank].runCount, record.pages > 0, frame + Int(record.pages) <= banks[bank].pages else {
      return .violation("a record for a run that was not given")
    }
    guard Self.isInside(record, banks[bank].runs[Int(record.run)]) else { return .violation("a record outside of its run") }
    banks[bank].recordsTaken += 1
    banks[bank].framesTaken += Int(record.pages)
    let content = UnsafeRawPointer(vswap_frames_of(ring, UInt32(bank))!) + frame * pageSize
    return .evicted(Evicted(page: record.address / UInt64(pageSize), count: Int(record.pages), content: content))
  }

  private static func isInside(_ record: vswap_record, _ run: vswap_run) -> Bool {
    guard record.address % UInt64(pageSize) == 0, record.address >= run.address else { return false }
    let firstPage = (record.address - run.address) / UInt64(pageSize)
    return firstPage < UInt64(run.pages) && firstPage + UInt64(record.pages) <= UInt64(run.pages)
  }

  /// Ends commands whose records have all been taken and that the agent has finished with. Returns the pages they asked for;
  /// `moved` of them left.
  mutating func retire(moved: inout Int) -> Int {
    var asked = 0
    for bank in 0..<Self.bankCount where banks[bank].busy {
      guard vswap_finished(ring, UInt32(bank)) == banks[bank].sequence,
        Int(vswap_records(ring, UInt32(bank))) == banks[bank].recordsTaken
      else { continue }
      banks[bank].busy = false
      asked += banks[bank].pages
      moved += banks[bank].framesTaken
    }
    // The gate does not matter any more, whoever has it.
    if !isOutstanding { keptSince = 0 }
    return asked
  }

  // MARK: - Requests of the target's threads

  /// A range that a thread wants released before it changes it, or nil.
  func pendingRequest() -> (kind: UInt32, start: UInt64, end: UInt64)? {
    let request = vswap_request_of(ring)!
    guard vswap_load(&request.pointee.state) == UInt32(VSWAP_REQUEST_ASKED.rawValue) else { return nil }
    return (request.pointee.kind, request.pointee.start, request.pointee.end)
  }

  /// Nothing of the target is here any more: nobody has to ask, nor waits for an answer.
  mutating func release() {
    publish(registered: 0)
    if pendingRequest() != nil { grantRequest() }
    dismissAgent()
  }

  func grantRequest() { setRequest(UInt32(VSWAP_REQUEST_GRANTED.rawValue)) }

  /// Whether the thread is done with what it was granted; forgets the request.
  func finishRequest() -> Bool {
    let request = vswap_request_of(ring)!
    guard vswap_load(&request.pointee.state) == UInt32(VSWAP_REQUEST_DONE.rawValue) else { return false }
    setRequest(UInt32(VSWAP_REQUEST_NONE.rawValue))
    return true
  }

  private func setRequest(_ state: UInt32) {
    let request = vswap_request_of(ring)!
    vswap_store(&request.pointee.state, state)
    _ = vs_futex_wake(&request.pointee.state, Int32.max)
  }

  // MARK: - What the agent may know

  /// Before a registration. The shim lets calls pass without asking while nothing is registered; each side says first what it is
  /// about to do and looks then at what the other one said (Dekker), so not both can go on. false: a call is under way. It was the last to
  /// pass without asking, or threads that relieve each other in such calls would keep the daemon from registering for ever.
  mutating func announceRegistration() -> Bool {
    if isAnnounced { return true }
    if vswap_load(vswap_registered(ring)!) == 0 { _ = vswap_exchange(vswap_registered(ring)!, 1) }
    isAnnounced = vswap_add(vswap_callers(ring)!, 0) == 0
    isAnnouncing = !isAnnounced
    return isAnnounced
  }

  /// Whether the shim has to ask before mremap.
  mutating func publish(registered: Int) {
    if registered == 0 { isAnnounced = false }
    vswap_store(vswap_registered(ring)!, UInt32(clamping: max(registered, isAnnouncing ? 1 : 0)))
  }

  /// Whether the target can live on without this daemon.
  @inline(__always)
  func publish(held: Int) { vswap_store(vswap_held(ring)!, UInt32(clamping: held)) }

  /// After `held` says so: the records of that many more pages are of no concern to the agent any more.
  func publish(taken pages: Int) { _ = vswap_add(vswap_taken(ring)!, UInt32(clamping: pages)) }
}
