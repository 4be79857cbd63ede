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
  /// Where frames for commands are promised.
  private let budget: FrameBudget
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
  /// Monotonic nanoseconds: when the agent got the command that it has to end next.
  private var waitingSince: UInt64 = 0
  /// It took longer for its last command than an agent does that has a CPU.
  private var isSlow = false

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
    /// Pages that may still arrive.
    var expected = 0
    /// Frames that are promised to the command.
    var promised = 0
    /// The agent may end the command, but moves no more pages for it than `expected`.
    var isTakenBack = false
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

  init(socket: Int32, program: Int32, ring: Mapping, doorbell: Int32, budget: FrameBudget) {
    self.socket = socket
    self.program = program
    self.doorbell = doorbell
    self.budget = budget
    ringMapping = ring
    self.ring = vswap_ring_at(ring.base)
    banks = .allocate(capacity: Self.bankCount)
    for index in 0..<Self.bankCount {
      (banks + index).initialize(to: BankState(runs: .allocate(capacity: Self.bankPages)))
    }
  }

  /// Nothing arrives from the agent any more.
  mutating func destroy() {
    endPromises()
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

  /// Pages that the agent is to move yet.
  var outstandingPages: Int {
    var pages = 0
    for index in 0..<Self.bankCount where banks[index].busy && !banks[index].isTakenBack { pages += banks[index].pages }
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
  /// of pages that it may have been at.
  mutating func bury(_ body: (vswap_run) -> Void) {
    endPromises()
    for bank in 0..<Self.bankCount where banks[bank].busy {
      for index in 0..<banks[bank].runCount { body(banks[bank].runs[index]) }
      banks[bank].busy = false
    }
    isDead = true
  }

  /// Most pages of the next command. An agent that was slow has to show first that it answers, with few frames in its hand.
  var mostPages: Int { isSlow ? Int(VSWAP_PIECE_PAGES) : Self.bankPages }

  /// An idle bank, or nil.
  func idleBank() -> Int? {
    if isDead { return nil }
    for index in 0..<Self.bankCount where !banks[index].busy { return index }
    return nil
  }

  /// Commands were taken back, and none is given until the agent has ended one.
  var isStalled: Bool {
    for index in 0..<Self.bankCount where banks[index].busy && banks[index].isTakenBack { return true }
    return false
  }

  /// Where to write the runs of the next command for a bank: room for `bankPages` of them.
  func runs(of bank: Int) -> UnsafeMutablePointer<vswap_run> { banks[bank].runs }

  /// Runs of a bank's latest command.
  func runCount(of bank: Int) -> Int { banks[bank].runCount }

  /// Hands the first `count` runs, `pages` pages in all, to the agent at `now`. Frames for that many are promised, and are the link's to give back.
  mutating func submit(bank: Int, runs count: Int, pages: Int, now: UInt64) {
    if !isOutstanding { waitingSince = now }
    sequence &+= 1
    banks[bank].expected = pages
    banks[bank].promised = pages
    banks[bank].isTakenBack = false
    banks[bank].busy = true
    banks[bank].sequence = sequence
    banks[bank].runCount = count
    banks[bank].pages = pages
    banks[bank].recordsTaken = 0
    banks[bank].framesTaken = 0
    banks[bank].givenAt = now
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
    guard Int(record.run) < banks[bank].runCount, record.pages > 0, Int(record.pages) <= banks[bank].expected else {
      return .violation("a record for a run that was not given, or was taken back")
    }
    guard Self.isInside(record, banks[bank].runs[Int(record.run)]) else { return .violation("a record outside of its run") }
    banks[bank].recordsTaken += 1
    banks[bank].framesTaken += Int(record.pages)
    banks[bank].expected -= Int(record.pages)
    let content = UnsafeRawPointer(vswap_frames_of(ring, UInt32(bank))!) + frame * pageSize
    return .evicted(Evicted(page: record.address / UInt64(pageSize), count: Int(record.pages), content: content))
  }

  private static func isInside(_ record: vswap_record, _ run: vswap_run) -> Bool {
    guard record.address % UInt64(pageSize) == 0, record.address >= run.address else { return false }
    let firstPage = (record.address - run.address) / UInt64(pageSize)
    return firstPage < UInt64(run.pages) && firstPage + UInt64(record.pages) <= UInt64(run.pages)
  }

  /// Ends the command of a bank if its records have all been taken and the agent has finished with it, and gives its frames back. Returns whether
  /// it has ended; adds the pages that left to `moved`. Its runs can be read until the bank's next command.
  mutating func retire(_ bank: Int, moved: inout Int, now: UInt64) -> Bool {
    guard banks[bank].busy, vswap_finished(ring, UInt32(bank)) == banks[bank].sequence,
      Int(vswap_records(ring, UInt32(bank))) == banks[bank].recordsTaken
    else { return false }
    banks[bank].busy = false
    budget.release(banks[bank].promised)
    banks[bank].promised = 0
    moved += banks[bank].framesTaken
    isSlow = banks[bank].isTakenBack || now - waitingSince > Self.slowness
    waitingSince = now
    // The gate does not matter any more, whoever has it.
    if !isOutstanding { keptSince = 0 }
    return true
  }

  // MARK: - An agent that does not answer

  /// An agent takes some 2 ms for a command. One that takes longer than this, in nanoseconds, has no CPU, or is stopped.
  private static let longest: UInt64 = 200_000_000
  private static let slowness: UInt64 = 50_000_000

  /// Whether the agent has had its command for too long, and keeps frames that others could have.
  func isSilent(_ now: UInt64) -> Bool {
    guard now > waitingSince + Self.longest else { return false }
    for index in 0..<Self.bankCount where banks[index].busy && !banks[index].isTakenBack { return true }
    return false
  }

  /// Takes all commands back that the agent has: their pages stay where they are, and the frames are others' again. Without the gate, which a stopped
  /// agent may have in its hand. It looks at the generation once for each piece that it moves; so once that has changed, one piece at
  /// most is still to come, and none if the gate is free. More than that is a violation. The commands end when the agent says so.
  mutating func takeBack() {
    let wasHeld = gateHeld
    let isIdle = wasHeld || vswap_replace(vswap_gate(ring)!, 0, 1) != 0
    gateHeld = isIdle
    abandonCommands()
    for bank in 0..<Self.bankCount where banks[bank].busy && !banks[bank].isTakenBack {
      // Read after the generation was changed: what the agent published before it saw that is in here.
      let late = unread(bank) + (isIdle ? 0 : Int(VSWAP_PIECE_PAGES))
      banks[bank].expected = min(banks[bank].expected, late)
      banks[bank].isTakenBack = true
      budget.release(banks[bank].promised - banks[bank].expected)
      banks[bank].promised = banks[bank].expected
    }
    if !wasHeld { leave() }
  }

  /// Pages of records that wait to be taken; what they claim, not more than the command has left.
  private func unread(_ bank: Int) -> Int {
    let produced = min(Int(vswap_records(ring, UInt32(bank))), Self.bankPages)
    var pages = 0
    var index = banks[bank].recordsTaken
    while index < produced && pages < banks[bank].expected {
      pages += Int(vswap_record_at(ring, UInt32(bank), UInt32(index)).pages)
      index += 1
    }
    return min(pages, banks[bank].expected)
  }

  /// The agent has gone, or nobody looks at its records any more.
  mutating func endPromises() {
    for bank in 0..<Self.bankCount where banks[bank].busy {
      budget.release(banks[bank].promised)
      banks[bank].promised = 0
    }
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

  // MARK: - Announcements of the target's threads

  /// Byte address of the first bell; 0: the library announces nothing.
  var bells: UInt64 { vswap_bells(ring) }

  /// What was announced before a bell was touched, in pages; nil: nothing that can be.
  func announcement(_ index: Int) -> (start: UInt64, end: UInt64, isPlain: Bool)? {
    let entry = vswap_announcement_at(ring, UInt32(index))
    let start = entry.start / UInt64(pageSize)
    let end = entry.end / UInt64(pageSize)
    guard start < end else { return nil }
    return (start, end, entry.start & UInt64(VSWAP_ANNOUNCED_PLAIN) != 0)
  }

  /// What is registered there now, in pages.
  func answer(_ index: Int, start: UInt64, end: UInt64) {
    vswap_answer(ring, UInt32(index), vswap_announcement(start: start * UInt64(pageSize), end: end * UInt64(pageSize)))
  }

  /// New memory of that many pages or more is to be announced.
  func publish(announceFrom pages: UInt32) {
    let word = vswap_announce_from(ring)!
    if vswap_load(word) != pages { vswap_store(word, pages) }
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
