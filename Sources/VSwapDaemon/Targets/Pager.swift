import CUserfault
import CVSwapWire
import Glibc
import Synchronization

/// One thread that owns a target, and the forked children that have no agent of their own yet.
///
/// Everything that touches their state happens here, one thing after the other, so there is no lock on a page table. Others
/// ask by `post`. The thread follows its target's faulting threads from CPU to CPU: waking a thread on another, idle CPU costs
/// several times what serving the fault does.
final class Pager: @unchecked Sendable {
  typealias Member = UnsafeMutablePointer<TargetState>

  /// What other threads may ask for.
  enum Request: Sendable {
    case evict(bytes: Int?, Promise<EvictResult>)
    case restore(Promise<RestoreResult>)
    /// Restores, then lets the target and its agent go.
    case detach(Promise<RestoreResult>)
    /// The same for the target and every child: the daemon is leaving.
    case dissolve(Promise<RestoreResult>)
    /// A duplicate of a child's userfaultfd, for its agent.
    case duplicate(token: UInt64, Promise<Int32?>)
    /// Lets go of the files of areas that went; the loop did so before it took the request.
    case refreshFiles(Promise<Bool>)
    /// Gives up all clean copies.
    case dropCopies(Promise<Bool>)
    /// Brings pages in from a swap area that goes.
    case bringIn(PageBatch, Promise<Bool>)
    /// Gives up a child that has an agent now.
    case handOver(token: UInt64, Promise<HandOver?>)

    /// Can be answered in the middle of a restore.
    var isShort: Bool {
      switch self {
      case .duplicate, .refreshFiles, .dropCopies, .bringIn: true
      case .evict, .restore, .detach, .dissolve, .handOver: false
      }
    }
  }

  struct EvictResult: Sendable {
    var pages: Int
    /// The agent does not answer, or the target is stopped.
    var isStuck = false
  }

  enum RestoreResult: Sendable {
    case restored(pages: Int)
    /// The agent does not answer, or the target is stopped.
    case stuck
    case gone
  }

  /// A child's state on its way to its new pager.
  struct HandOver: @unchecked Sendable {
    let member: Member
  }

  /// Whoever owns the pagers: told about forks, ends and protocol violations.
  protocol Family: AnyObject, Sendable {
    func identifiersForChild(in group: Group) -> (id: UInt32, token: UInt64)?
    /// The address space that had it, or was to have it, has no slots any more.
    func freeIdentifier(_ id: UInt32, of group: Group)
    func childAppeared(token: UInt64, servedBy pager: Pager)
    /// It was to have a pager of its own, and got none after all.
    func childCameBack(token: UInt64, to pager: Pager)
    /// It was found out which process a child is.
    func childIdentified(_ child: YoungProcess, of pager: Pager)
    /// `id` is free again, unless the child lives on with a pager of its own.
    func childDisappeared(token: UInt64, freeing id: UInt32?, of pager: Pager)
    /// `isDetached`: it was let go of, and has its memory yet.
    func targetEnded(_ target: Target, becauseOf violation: String?, isDetached: Bool)
  }

  let target: Target
  private unowned let family: any Family
  private let layer: SlotLayer
  private let budget: FrameBudget
  private let compressor: Compressor
  private let haltPolling: HaltPolling
  private let descriptors: DescriptorReserve
  private let mailbox: Int32
  /// Mailbox, doorbell and socket as one.
  private let quiet: Int32
  private let lock = Lock.create()
  private var requests: [Request] = []
  private var isClosed = false
  /// Whose thread this is, under `lock`; 0 when it may be gone, or must not be hurried.
  private var thread = gettid()
  private let servingThread = gettid()
  /// `servingThread` lives, under `lock`.
  private var isRunning = true
  /// How often the keeper has made the thread a real-time one, counted afterwards; and as of which of these the thread ended that. Between two steps
  /// of ending it the thread may lose its CPU, and has to be hurried again.
  private let hurries = Atomic<Int>(0)
  private var hurriesEnded = 0

  /// Held by the pager's thread except while it waits or does what an unpacker would, and by a swapoff's worker or an unpacker that brings pages
  /// in: over everything below.
  private let serving = Lock.create()

  private var buffers: FaultBuffers
  private lazy var aheadBatch = PageBatch()
  /// The first one is the target itself while `hasTarget`; the others are young children.
  private var members: [Member]
  private var hasTarget = true
  private var map: MemoryMap
  private var polled: [pollfd] = []
  private var lastCPU: Int32 = -1
  /// It was there once, and runs where the scheduler likes now.
  private var isAdrift = false
  /// Monotonic nanoseconds since which threads have been waiting without a break; 0: none is.
  private var waitingSince: UInt64 = 0
  private var storm = FaultStorm()
  private var roundsSinceLook = 0
  private var roundsPerLook = 16
  private var stallClock = StallClock()
  private var boost: AgentBoost
  private var evictRequest: (promise: Promise<EvictResult>, before: Int, roundsBefore: Int, goal: Int)?
  private var grant = Grant.none
  /// Monotonic nanoseconds of the next look whether the program executes something else.
  private var nextLookForProgram: UInt64 = 0
  /// Found outside of a round.
  private var violation: StaticString?
  /// Of a target that broke the protocol: its link, which is looked at no more, until all its pages are back.
  private var expelled: (link: AgentLink, violation: StaticString)?
  /// Somebody waited for this pager in vain, since when it has not come round.
  private let isSilent = Atomic<Bool>(false)
  /// A restore is under way, in which nobody else maps pages.
  private let isRestoring = Atomic<Bool>(false)

  /// What a thread of the target wants released, in pages.
  private enum Grant {
    case none
    case asked(spanned: Bool, low: UInt64, high: UInt64)
    case granted
  }

  /// Takes over `state`, `mailbox`, `quiet` and `buffers`. On the thread that will call `run`.
  init(
    target: Target, state: Member, family: any Family, mailbox: Int32, quiet: Int32, buffers: FaultBuffers,
    budget: FrameBudget, compressor: Compressor, haltPolling: HaltPolling, descriptors: DescriptorReserve
  ) {
    self.target = target
    self.family = family
    self.mailbox = mailbox
    self.quiet = quiet
    self.buffers = buffers
    self.budget = budget
    self.compressor = compressor
    self.haltPolling = haltPolling
    self.descriptors = descriptors
    layer = buffers.layer
    members = [state]
    map = MemoryMap(processID: state.pointee.processID, lookup: MappingLookup(descriptor: state.pointee.maps))
    boost = AgentBoost(agent: state.pointee.processID, of: target.processID)
    self.buffers.pager = .passUnretained(self)
  }

  deinit {
    buffers.destroy()
    Glibc.close(mailbox)
    Glibc.close(quiet)
    lock.destroy()
    serving.destroy()
  }

  // MARK: - From other threads

  /// Asks the pager. false: it has ended.
  func post(_ request: Request) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    guard !isClosed else { return false }
    requests.append(request)
    _ = vs_eventfd_signal(mailbox)
    return true
  }

  /// Makes the pager look at its counters: pages are wanted, or there is room.
  func nudge() { _ = vs_eventfd_signal(mailbox) }

  /// Waits for what this pager was asked for, `milliseconds` at most. nil: it has not answered.
  func answer<Value>(_ promise: Promise<Value>, within milliseconds: Int) -> Value? {
    var left = milliseconds
    while left > 0 {
      let part = min(left, Self.longestRound)
      if let value = promise.wait(milliseconds: part) { return value }
      left -= part
      missedAnswer()
    }
    return nil
  }

  /// Milliseconds. One round of its loop takes less, unless it waits for its target or restores much.
  private static let longestRound = 1000

  /// Gives the pager a CPU for one round of its loop before all threads that are not real-time ones. For the keeper's thread alone: the pager cannot
  /// end what is being begun. Where the process has no right to it, nothing happens.
  func hurry() {
    guard lock.tryLock() else { return }
    defer { lock.unlock() }
    guard thread != 0, vs_make_real_time(thread) == 0 else { return }
    hurries.wrappingAdd(1, ordering: .releasing)
  }

  /// For what may take long within one round, or waits for threads that are not real-time ones: nobody hurries it.
  private func unhurried<Result>(_ body: () -> Result) -> Result {
    let before = setThread(0)
    defer { _ = setThread(before) }
    endHurry()
    return body()
  }

  /// Returns what it was.
  private func setThread(_ new: pid_t) -> pid_t {
    lock.lock()
    defer { lock.unlock() }
    let before = thread
    thread = new
    return before
  }

  /// The round is over.
  private func endHurry() {
    let count = hurries.load(ordering: .acquiring)
    guard count != hurriesEnded, vs_end_real_time() == 0 else { return }
    hurriesEnded = count
  }

  /// What became of a batch that somebody else was to bring in.
  enum Delivery {
    /// What could be brought in was.
    case done
    /// The pager has to do it, since an event has to be read first.
    case eventFirst
    /// The target takes nothing now.
    case refused
  }

  /// From a swapoff's worker: brings pages in on the caller's thread, in whose cache their content is; that takes half the time of a copy
  /// by the pager. Waits for the pager and its target's agent for a tenth of a second at most, and once that was in vain not at all before
  /// the pager has come round: it may be blocked by something that its target controls.
  func bringInHere(_ batch: PageBatch) -> Delivery {
    if isRestoring.load(ordering: .relaxed) { return .refused }
    guard serving.lock(timeoutMilliseconds: isAnswering ? 100 : 0) else {
      missedAnswer()
      return .refused
    }
    defer { serving.unlock() }
    guard hasTarget, members[0].pointee.id == batch.target, !members[0].pointee.requestGranted, violation == nil
    else { return .refused }
    switch members[0].pointee.bringIn(batch, buffers) {
    case .drained: return .done
    case .again, .gone: return .eventFirst
    case .kept: return .refused
    case .violation(let what):
      violation = what
      nudge()
      return .refused
    }
  }

  /// Whether it is of use to wait for this pager.
  var isAnswering: Bool { !isSilent.load(ordering: .relaxed) }

  /// Somebody waited in vain. Until the pager comes round again nobody else needs to.
  /// Where a target has had it wait in read(2) it goes on, and ends that target's session.
  func missedAnswer() {
    isSilent.store(true, ordering: .relaxed)
    guard lock.tryLock() else { return }
    defer { lock.unlock() }
    if isRunning { _ = vs_interrupt(servingThread) }
  }

  /// From an unpacker: maps pages that were read ahead for an address space, on the caller's thread. false: not now. Whoever keeps the pager (a
  /// restore of much memory, a target that is stopped) keeps no unpacker.
  func mapAheadHere(_ batch: PageBatch, of token: UInt64) -> Bool {
    guard serving.lock(timeoutMilliseconds: 2) else { return false }
    defer { serving.unlock() }
    guard violation == nil, let member = members.first(where: { $0.pointee.token == token }),
      !member.pointee.requestGranted, member.pointee.account.room >= batch.items.count
    else { return false }
    switch member.pointee.bringInAhead(batch, buffers) {
    case .drained:
      // The pager may be asleep, and nobody else asks it for what it is asked for already.
      if member.pointee.link != nil && member.pointee.counters.wanted > 0 { nudge() }
      return true
    case .again, .kept, .gone: return false
    case .violation(let what):
      violation = what
      return false
    }
  }

  // MARK: - The loop

  /// Serves until nothing is left to serve. On the thread that becomes the pager's.
  func run() {
    _ = vs_let_interrupt()
    serving.lock()
    defer { serving.unlock() }
    while !members.isEmpty {
      wait()
      if !isAnswering { isSilent.store(false, ordering: .relaxed) }
      if hasTarget { followFaults() }
      buffers.reader.refreshFiles()
      if let what = violation, hasTarget { expel(what) }
      takeRequests()
      if layer.mustDropCopies { dropCopies() }
      helpWorkers()
      finishReads()
      var index = members.count - 1
      while index >= 0 {
        serve(index)
        index -= 1
      }
      identifyChildren()
      if hasTarget { tendTarget() }
      if hasTarget { keepAwake() }
      endHurry()
    }
    close()
    awaitHauls()
  }

  /// The buffers must outlive what workers do with them. They give up at the first page, since nobody is left whose it could be.
  private func awaitHauls() {
    while !buffers.takeBackHauls() {
      serving.unlock()
      usleep(100)
      serving.lock()
    }
  }

  private func close() {
    lock.lock()
    isClosed = true
    isRunning = false
    thread = 0
    let left = requests
    requests = []
    lock.unlock()
    for request in left { refuse(request) }
  }

  private func dropCopies() {
    for member in members where member.pointee.table.copyCount > 0 { member.pointee.table.dropCopies(layer: layer) }
  }

  private func refuse(_ request: Request) {
    switch request {
    case .evict(_, let promise): promise.fulfil(EvictResult(pages: 0))
    case .restore(let promise), .detach(let promise), .dissolve(let promise): promise.fulfil(.gone)
    case .duplicate(_, let promise): promise.fulfil(nil)
    case .bringIn(_, let promise), .refreshFiles(let promise), .dropCopies(let promise): promise.fulfil(false)
    case .handOver(_, let promise): promise.fulfil(nil)
    }
  }

  private func wait() {
    polled.removeAll(keepingCapacity: true)
    polled.append(pollfd(fd: quiet, events: Int16(POLLIN), revents: 0))
    watchMembers()
    stallClock.rest()
    let longest = timeout
    // Where memory grows unseen near the limit a pager that is woken comes sooner.
    let isLooking = storm.isToBeWatched && hasTarget && members[0].pointee.account.reserve == 0
    serving.unlock()
    let ready = isLooking ? look(longest) : poll(&polled, nfds_t(polled.count), longest)
    serving.lock()
    if ready == 0 { buffers.ahead.pointee.clear() }
    guard ready > 0 else { return }
    noteBlocking()
    if polled[0].revents != 0 { takeRings() }
  }

  /// Behind the one thing that is polled first.
  private func watchMembers() {
    for member in members {
      // What is there cannot be read while the agent keeps the gate.
      let descriptor = member.pointee.isKept ? -1 : member.pointee.uffd.descriptor
      polled.append(pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
    }
    if buffers.reader.underWay > 0 {
      polled.append(pollfd(fd: buffers.reader.descriptor, events: Int16(POLLIN), revents: 0))
    }
  }

  private func noteBlocking() {
    for index in members.indices where polled[index + 1].revents & Int16(POLLERR) != 0 { unblock(index) }
  }

  /// The descriptor was made to block, which only the target can have done: the open file is its own as well.
  @inline(never)
  private func unblock(_ index: Int) {
    members[index].pointee.uffd.unblock()
    if hasTarget && index == 0 && members[0].pointee.link != nil { violation = "the userfaultfd's O_NONBLOCK was cleared" }
  }

  /// As poll. While several threads fault in turn the pager does not sleep, but offers its CPU to whoever wants it: a pager that sleeps is woken by
  /// the next fault, wherever that comes from, and in a guest it costs as much as the fault itself to wake a thread on another CPU.
  private func look(_ longest: Int32) -> Int32 {
    // What it waits for its CPU after it has yielded is no delay of a wake-up.
    stallClock.forgetDelay()
    let start = vs_monotonic_ns()
    var now = start
    while now - start < FaultStorm.patience {
      let ready = poll(&polled, nfds_t(polled.count), 0)
      if ready != 0 {
        if now > start { storm.endedLook() }
        return ready
      }
      sched_yield()
      now = vs_monotonic_ns()
    }
    storm.endedLookInVain(at: now)
    return poll(&polled, nfds_t(polled.count), longest)
  }

  /// Mailbox, doorbell, socket: what rang.
  private func takeRings() {
    // As many as there are: a target that rings without a pause does not keep the pager here.
    for _ in 0..<3 {
      let descriptor = vs_epoll_next(quiet)
      if descriptor < 0 { return }
      if hasTarget, let link = members[0].pointee.link, descriptor == link.socket {
        agentLeft()
        return
      }
      if hasTarget, let link = members[0].pointee.link, descriptor == link.program {
        dismissAgent()
        continue
      }
      vs_eventfd_clear(descriptor)
    }
  }

  /// Before the agent's descriptors are closed: the agent has the doorbell, too, and may ring on.
  private func unwatch(_ link: AgentLink) {
    boost.end()
    vs_epoll_remove(quiet, link.doorbell)
    vs_epoll_remove(quiet, link.socket)
    vs_epoll_remove(quiet, link.program)
  }

  /// Milliseconds until something has to be looked at that no descriptor tells.
  private var timeout: Int32 {
    var result: Int32 = members.count > (hasTarget ? 1 : 0) ? 20 : -1
    for member in members {
      if member.pointee.isKept {
        result = result < 0 ? gatePause(member) : min(result, gatePause(member))
      } else if member.pointee.waitingCount > 0 || member.pointee.pending.moveCount > 0 {
        result = 1
      }
    }
    if case .asked = grant { result = result < 0 ? 5 : min(result, 5) }
    if expelled != nil { result = 0 }
    // Slots are not held on to for a stream that has ended.
    if buffers.ahead.pointee.isActive { result = result < 0 ? 20 : min(result, 20) }
    if hasTarget, let link = members[0].pointee.link, !link.isStalled {
      if link.isOutstanding { result = result < 0 ? 100 : min(result, 100) }
      if members[0].pointee.counters.wanted > 0 { result = result < 0 ? 5 : min(result, 5) }
    }
    if boost.isOn { result = result < 0 ? 50 : min(result, 50) }
    if buffers.reader.hasQueued { result = 1 }
    if hasTarget, let link = members[0].pointee.link, link.isDeserted && !link.isDismissed {
      result = result < 0 ? 50 : min(result, 50)
    }
    if hasTarget, members[0].pointee.growth.isWanted { result = result < 0 ? 5 : min(result, 5) }
    let isLooking = map.isWalking && hasTarget && members[0].pointee.counters.wanted > 0
    if isLooking || (hasTarget && members[0].pointee.growth.cursor != nil) { result = 0 }
    return result
  }

  /// Until the gate is looked at again: it does not tell. An agent that was without a CPU is back soon; one that is stopped may take days.
  private func gatePause(_ member: Member) -> Int32 {
    vs_monotonic_ns() - (member.pointee.link?.keptSince ?? 0) < 100_000_000 ? 1 : 10
  }

  private func serve(_ index: Int) {
    // Who waits for a read that a worker has dealt with, or given up, is served now.
    buffers.takeBackHauls()
    let member = members[index]
    let (account, counters) = (member.pointee.account, member.pointee.counters)
    stallClock.begin(faults: counters.faults, account)
    var outcome = member.pointee.drain(buffers)
    if case .drained = outcome, member.pointee.waitingCount > 0 { outcome = member.pointee.serveWaiting(buffers) }
    stallClock.end(faults: counters.faults, waiting: member.pointee.waitingCount + buffers.reader.askedUnderWay, account)
    guard conclude(outcome, index) else { return }
    // A child that ends or executes says nothing.
    if index > 0 || !hasTarget, case .gone = member.pointee.uffd.probe(at: member.pointee.probeAddress) {
      end(index, violation: nil)
    }
  }

  /// false: the member is none any more.
  @discardableResult
  private func conclude(_ outcome: DrainOutcome, _ index: Int) -> Bool {
    switch outcome {
    case .drained: members[index].pointee.refusedSince = 0
    case .again: members[index].pointee.endRefusal(layer)
    case .kept: break
    case .gone:
      end(index, violation: nil)
      return false
    case .violation(let what):
      expel(what)
      return false
    }
    return true
  }

  /// Reads from swap areas that have completed.
  private func finishReads() {
    while let (flight, isComplete) = buffers.reader.next() {
      guard let place = members.firstIndex(where: { $0.pointee.token == flight.token }) else {
        buffers.reader.finish(flight.index)
        continue
      }
      if flight.fault.thread == Fault.ahead {
        members[place].pointee.readOn(after: flight.fault.address / UInt64(pageSize), buffers)
      }
      if isComplete, let haul = members[place].pointee.haul(flight, buffers) {
        // Faults come first: those that wait for this read may be about to ask for the next ones.
        guard unpack(haul) else { return }
        continue
      }
      let outcome = members[place].pointee.finishRead(flight, isComplete: isComplete, buffers)
      buffers.reader.finish(flight.index)
      conclude(outcome, place)
    }
  }

  /// Has a worker unpack and map what a read ahead has brought. false: all of them have enough to do, and the pager did what a worker would; the
  /// workers can map theirs meanwhile.
  private func unpack(_ haul: Haul) -> Bool {
    if haul.post(of: .passUnretained(self), to: buffers.unpackers) { return true }
    workOff(haul)
    return false
  }

  private func workOff(_ haul: Haul) {
    serving.unlock()
    haul.work(for: self, layer: layer, codec: buffers.codec, batch: aheadBatch)
    serving.lock()
    if let flight = haul.takeBack() { buffers.reader.finish(flight.index) }
  }

  /// Where threads have waited for a millisecond, the workers are somewhere else: at another target's pages, perhaps, which may take long. One
  /// haul at a time, since there are faults to be served.
  private func helpWorkers() {
    guard members.contains(where: { $0.pointee.waitingCount > 0 }) else {
      waitingSince = 0
      return
    }
    let now = vs_monotonic_ns()
    if waitingSince == 0 { waitingSince = now }
    guard now - waitingSince > 1_000_000 else { return }
    for index in 0..<FaultBuffers.haulCount where buffers.hauls[index].claim() { return workOff(buffers.hauls[index]) }
  }

  /// The page of all members that have it.
  private func bringInShared(_ batch: PageBatch) -> Bool {
    for member in members {
      for _ in 0..<64 {
        guard let place = members.firstIndex(of: member) else { break }
        let outcome = member.pointee.bringIn(batch, buffers)
        if case .drained = outcome { break }
        if case .kept = outcome { break }
        if case .again = outcome { serve(place) } else { conclude(outcome, place) }
      }
    }
    return true
  }

  /// From swapoff. false: the target has gone, or cannot take pages now.
  private func bringIn(_ batch: PageBatch) -> Bool {
    for _ in 0..<64 {
      guard hasTarget, members[0].pointee.id == batch.target, !members[0].pointee.requestGranted else { return false }
      let outcome = members[0].pointee.bringIn(batch, buffers)
      if case .drained = outcome { return true }
      if case .kept = outcome { return false }
      if case .again = outcome {} else { conclude(outcome, 0) }
      guard hasTarget else { return false }
      serve(0)
    }
    return false
  }

  // MARK: - The target with the agent

  private func tendTarget() {
    let member = members[0]
    if expelled != nil { return goOnExpelling(member) }
    answerRequest(member)
    guard hasTarget, members[0].pointee.link != nil else { return }
    if member.pointee.link!.isDeserted { lookForProgram(member) }
    if member.pointee.counters.unregisteredGrowth {
      member.pointee.counters.unregisteredGrowth = false
      member.pointee.growth.isWanted = true
    }
    member.pointee.publishAnnounceFrom()
    member.pointee.registerGrowth(&map, layer: layer)
    member.pointee.counters.chunks = members.reduce(0) { $0 + $1.pointee.table.chunkCount }
    evict(member)
    finishEvictRequest(member)
  }

  private func evict(_ member: Member) {
    guard member.pointee.link!.isOutstanding || member.pointee.counters.wanted > 0 else { return boost.idle() }
    boost.asked(pages: member.pointee.counters.evictions)
    if member.pointee.retireCommands() { compressor.nudge() }
    guard !member.pointee.isKept, buffers.prepareToUnpack() else { return }
    member.pointee.sweep.leaveOut(member.pointee.counters)
    member.pointee.pushCommands(budget, &map, layer: layer)
    if member.pointee.counters.wanted > 0 && !member.pointee.link!.isOutstanding { compressor.nudge() }
  }

  /// Where does the faulting thread run? Asked every 16 rounds, more often when a storm of faults has just begun, and less often as long as the answer
  /// is the same: asking costs as much as a fault.
  ///
  /// Not while several threads fault in turn, each of them somewhere else, nor while memory grows unseen near the limit. A thread that moves while it
  /// is ahead of its share of CPU time takes that along, and the scheduler (EEVDF, `place_entity`) makes as much more of it as the thread weighs more
  /// than those at the new place: at nice -19 beside one thread at nice 0, 71 times. It then does not run for 20 ms, in which programs map tens of megabytes. Programs that fault only wait.
  private func followFaults() {
    roundsSinceLook += 1
    guard roundsSinceLook >= roundsPerLook, !staysWhereItIs, members[0].pointee.account.reserve == 0 else { return }
    roundsSinceLook = 0
    roundsPerLook = min(2 * roundsPerLook, 256)
    // The latest fault's place still says who it was.
    let cpu = vs_cpu_of_thread(buffers.faults[0].thread)
    guard cpu >= 0, cpu != lastCPU, vs_set_cpu(cpu) == 0 else { return }
    (lastCPU, isAdrift) = (cpu, false)
    roundsPerLook = storm.isYoung && haltPolling.isOfUse ? 1 : 16
  }

  /// While faults follow each other closely no CPU halts in between, if the kernel can be had to poll instead. While they are of one thread, somebody
  /// spins on the CPUs around this one; of two as well where the kernel does not poll, but not of more: those are woken there, each by an interrupt.
  /// On this CPU nobody spins, also not while a read is waited for: the scheduler would wake the program elsewhere.
  private func keepAwake() {
    guard haltPolling.isOfUse else { return }
    if members[0].pointee.account.reserve != 0 { stayHere() }
    let faults = members[0].pointee.counters.faults
    let now = vs_monotonic_ns()
    let isWaiting = buffers.reader.askedUnderWay > 0
    let hadFaults = storm.note(faults: faults, thread: buffers.faults[0].thread, now: now)
    guard hadFaults || isWaiting else { return }
    if storm.isSteady(at: now) { haltPolling.pollIdle(until: now + FaultStorm.aftermath) }
    guard storm.isRaging else { return }
    if haltPolling.kernelPolls ? storm.isOfSeveral : storm.isCrowded { return stay() }
    if storm.isBeginning { roundsPerLook = 1 }
    haltPolling.keepBusy(except: vs_current_cpu(), from: now, until: now + FaultStorm.gap)
  }

  /// Where the kernel polls there is no haste, and no reason to be on the same CPU as one of several threads.
  private var staysWhereItIs: Bool { haltPolling.kernelPolls ? storm.isOfSeveral : storm.isToBeWatched }

  /// Follows nobody any more: where this thread runs is the scheduler's business again. Not while memory grows unseen near the limit: as for
  /// `followFaults`, a heavy thread that moves may not run for long.
  private func stay() {
    guard haltPolling.kernelPolls, lastCPU >= 0, members[0].pointee.account.reserve == 0, vs_unset_cpu() == 0 else { return }
    (lastCPU, isAdrift) = (-1, true)
  }

  /// Ends that where it is.
  private func stayHere() {
    let cpu = vs_current_cpu()
    guard isAdrift, cpu >= 0, vs_set_cpu(cpu) == 0 else { return }
    (lastCPU, isAdrift) = (cpu, false)
  }

  // MARK: - Requests of the target's own threads

  private func answerRequest(_ member: Member) {
    guard let link = member.pointee.link else { return }
    switch grant {
    case .none: break
    case .asked: return release(member)
    case .granted:
      guard link.finishRequest() else { return }
      grant = .none
      member.pointee.requestGranted = false
      // What the thread did shows in smaps only.
      member.pointee.forgetEvictable(&map)
    }
    guard let request = link.pendingRequest() else { return }
    let low = request.start / UInt64(pageSize)
    grant = .asked(
      spanned: request.kind == UInt32(VSWAP_RELEASE_SPANNED.rawValue), low: low,
      high: max(low, request.end / UInt64(pageSize)))
    // No new command, and nobody is kept waiting for room: it may be the thread that asked.
    member.pointee.requestGranted = true
    release(member)
  }

  /// However long it takes: the thread that asked waits, and the call it is about to make needs the range to be let go of. One attempt per
  /// round, so nobody else waits for a target that is stopped meanwhile.
  private func release(_ member: Member) {
    guard case .asked(let spanned, let low, let high) = grant, takeBackCommands(), hasTarget,
      let touched = mappings(low, high)
    else { return }
    if !(spanned && touched.count == 1) {
      for region in touched where region.anonymous && !member.pointee.isPrivate(region.start, region.end) {
        guard restore(member, region.start, region.end) != nil else { return }
        unregister((region.start, region.end), member)
      }
    }
    guard hasTarget, let link = member.pointee.link else { return }
    grant = .granted
    link.grantRequest()
  }

  /// The mappings that touch a range, as the kernel has them: what was registered as one may have been split by mprotect since, and what appeared in
  /// a hole that was registered along with it is in no list of ours.
  func mappings(_ low: UInt64, _ high: UInt64) -> [MappedRegion]? {
    var found: [MappedRegion] = []
    var cursor = low
    while cursor < high {
      do throws(KernelError) {
        guard let region = try map.region(endingAfter: cursor), region.start < high else { break }
        found.append(region)
        cursor = region.end
      } catch {
        return nil
      }
    }
    return found
  }

  /// Out of the fault path, which has no list of mappings.
  func enterAnnounced(
    _ range: (start: UInt64, end: UInt64, isPlain: Bool), _ index: Int, of member: inout TargetState
  ) -> TargetState.Entry { member.enterAnnounced(range, index, &map, layer: layer) }

  private func unregister(_ range: (start: UInt64, end: UInt64), _ member: Member) {
    let length = (range.end - range.start) * UInt64(pageSize)
    member.pointee.uffd.unregister(range.start * UInt64(pageSize), length)
    member.pointee.registered.remove(from: range.start, below: range.end)
    // No event will tell when these pages go.
    member.pointee.table.dropCopies(from: range.start, below: range.end, layer: layer)
    member.pointee.uffd.wake(range.start * UInt64(pageSize), length: Int(length))
    member.pointee.publishToAgent()
  }

  /// How long an answer of the agent is waited for, in nanoseconds. Only a stopped target takes longer.
  private static let patience: UInt64 = 10_000_000_000

  // MARK: - Requests of the control plane

  private func takeRequests() {
    lock.lock()
    let taken = requests
    requests = []
    lock.unlock()
    for request in taken { take(request) }
  }

  private func take(_ request: Request) {
    switch request {
    case .duplicate(let token, let promise):
      let copy = indexOfChild(token).map {
        members[$0].pointee.uffd.share()
        return dup(members[$0].pointee.uffd.descriptor)
      }
      if !promise.fulfil(copy), let copy, copy >= 0 { Glibc.close(copy) }
    case .handOver(let token, let promise):
      let given = promise.isWanted ? handOver(token) : nil
      if !promise.fulfil(given), let given { takeBack(given) }
    case .dissolve(let promise): if promise.isWanted { promise.fulfil(dissolve()) }
    case .refreshFiles(let promise): promise.fulfil(true)
    case .dropCopies(let promise):
      dropCopies()
      promise.fulfil(true)
    case .bringIn(_, let promise) where !promise.isWanted: return
    case .bringIn(let batch, let promise) where batch.isShared: promise.fulfil(bringInShared(batch))
    case _ where !hasTarget: refuse(request)
    case .bringIn(let batch, let promise): promise.fulfil(bringIn(batch))
    case .evict(let bytes, let promise): startEvict(bytes, promise)
    case .restore(let promise): promise.fulfil(restoreAll())
    case .detach(let promise):
      let result = restoreAll()
      if case .restored = result { letGo(members[0], violation: nil) }
      promise.fulfil(result)
    }
  }

  /// Lets go of everyone. What is stuck goes on being served.
  private func dissolve() -> RestoreResult {
    var sum = 0
    if hasTarget {
      switch restoreAll() {
      case .restored(let pages):
        letGo(members[0], violation: nil)
        sum += pages
      case .gone: break
      case .stuck: return .stuck
      }
    }
    while let child = members.last {
      if let pages = restore(child, 0, .max) {
        sum += pages
        letGo(child, violation: nil)
      } else if members.contains(child) {
        return .stuck
      }
    }
    return .restored(pages: sum)
  }

  private func startEvict(_ bytes: Int?, _ promise: Promise<EvictResult>) {
    guard evictRequest == nil else {
      promise.fulfil(EvictResult(pages: 0))
      return
    }
    let counters = members[0].pointee.counters
    let goal = bytes.map { pages(covering: $0) } ?? Int.max / 4
    counters.wanted = max(counters.wanted, goal)
    members[0].pointee.sweep.pausedUntil = 0
    // What was mapped since the last look is asked for as well.
    members[0].pointee.sweep.refreshedAt = 0
    evictRequest = (promise, counters.evictions, members[0].pointee.sweep.rounds, goal)
  }

  private func finishEvictRequest(_ member: Member) {
    guard let request = evictRequest else { return }
    let counters = member.pointee.counters
    let done = counters.evictions - request.before
    // Every second chance is used up after so many rounds; a program that keeps bringing pages back would never be done.
    let isThrough =
      member.pointee.sweep.rounds - request.roundsBefore > Int(PageTableEntry.maximumChances) + 1 && !map.isWalking
    let isBlocked = budget.isStuck && !member.pointee.link!.isOutstanding
    let isStuck = counters.askedSince > 0 && vs_monotonic_ns() > counters.askedSince + Self.patience
    guard done >= request.goal || isThrough || isBlocked || isStuck else { return }
    counters.wanted = 0
    evictRequest = nil
    request.promise.fulfil(EvictResult(pages: done, isStuck: isStuck))
  }

  private func restoreAll() -> RestoreResult {
    let deadline = vs_monotonic_ns() + Self.patience
    members[0].pointee.counters.wanted = 0
    members[0].pointee.requestGranted = true
    defer { if hasTarget, case .none = grant { members[0].pointee.requestGranted = false } }
    guard quiesce(deadline) else { return hasTarget ? .stuck : .gone }
    guard let pages = restore(members[0], 0, .max) else { return hasTarget ? .stuck : .gone }
    return .restored(pages: pages)
  }

  /// Takes back the commands that the agent has, and waits until it has ended them. false: it has not in time, or the target has gone.
  private func quiesce(_ deadline: UInt64) -> Bool {
    unhurried {
      while !takeBackCommands() {
        guard hasTarget, vs_monotonic_ns() < deadline else { return false }
        serveWithin(milliseconds: 5)
        guard hasTarget else { return false }
      }
      return hasTarget
    }
  }

  /// One attempt. true: the agent has no command, and gets none while `requestGranted` is set.
  private func takeBackCommands() -> Bool {
    guard hasTarget, members[0].pointee.link != nil else { return true }
    if members[0].pointee.enterGate(layer) {
      members[0].pointee.link!.abandonCommands()
      members[0].pointee.link!.leave()
    }
    serve(0)
    guard hasTarget, members[0].pointee.link != nil else { return hasTarget }
    _ = members[0].pointee.retireCommands()
    if !members[0].pointee.link!.isOutstanding { return true }
    // An agent that was killed ends no command. What executes something else, or left a vfork child behind, is served until it has gone.
    if members[0].pointee.link!.agentHasGone { agentLeft() }
    return false
  }

  /// Within a request that takes its time: serves the whole family, above all the children, which do not wait for their parent's agent, and
  /// answers those who ask for what can be had meanwhile. Sleeps for that long at most if there is nothing to do.
  private func serveWithin(milliseconds: Int32) {
    if milliseconds > 0 { rest(milliseconds) }
    buffers.reader.refreshFiles()
    answerAside()
    finishReads()
    for index in stride(from: members.count - 1, through: 0, by: -1) where index < members.count { serve(index) }
  }

  private func rest(_ milliseconds: Int32) {
    let doorbell = hasTarget ? members[0].pointee.link?.doorbell ?? -1 : -1
    polled.removeAll(keepingCapacity: true)
    polled.append(pollfd(fd: doorbell, events: Int16(POLLIN), revents: 0))
    watchMembers()
    serving.unlock()
    let ready = poll(&polled, nfds_t(polled.count), milliseconds)
    serving.lock()
    guard ready > 0 else { return }
    noteBlocking()
    if polled[0].revents != 0 { vs_eventfd_clear(doorbell) }
  }

  /// Answers those who need not wait for the end of a restore.
  private func answerAside() {
    lock.lock()
    let taken = requests.filter(\.isShort)
    requests.removeAll(where: \.isShort)
    lock.unlock()
    for request in taken {
      if case .bringIn = request { refuse(request) } else { take(request) }
    }
  }

  /// Brings every page of the range back, faults and events of the whole family in between. nil: gone, or nothing came back for a while: the
  /// address space changes without a pause, or a disk does not answer.
  private func restore(_ member: Member, _ start: UInt64, _ end: UInt64) -> Int? {
    isRestoring.store(true, ordering: .relaxed)
    defer { isRestoring.store(false, ordering: .relaxed) }
    return unhurried { bringBack(member, start, end) }
  }

  private func bringBack(_ member: Member, _ start: UInt64, _ end: UInt64) -> Int? {
    var cursor = start
    var pages = 0
    var moves = member.pointee.moves
    var deadline = vs_monotonic_ns() + Self.patience
    while let place = members.firstIndex(of: member) {
      let restored = member.pointee.restored
      var pause: Int32 = 0
      switch member.pointee.restoreStep(from: cursor, below: end, buffers) {
      case .restored(let next, let count):
        if next > cursor { deadline = vs_monotonic_ns() + Self.patience }
        cursor = next
        pages += count
      case .finished where member.pointee.moves != moves:
        // What moved in between may have come to where nothing was left.
        moves = member.pointee.moves
        cursor = start
      case .finished:
        pages += member.pointee.restored
        member.pointee.restored = 0
        return pages
      case .changing: sched_yield()
      case .reading: pause = 5
      case .gone:
        self.end(place, violation: nil)
        return nil
      }
      serveWithin(milliseconds: pause)
      guard members.contains(member) else { return nil }
      if member.pointee.restored > restored { deadline = vs_monotonic_ns() + Self.patience }
      if vs_monotonic_ns() > deadline { return nil }
    }
    return nil
  }

  /// The agent does not keep to the protocol. Its pages go back, and the session ends; nobody else notices.
  private func expel(_ what: StaticString) {
    let member = members[0]
    guard var link = member.pointee.link else { return }
    violation = nil
    link.endPromises()
    unwatch(link)
    // Without the link no command, record or gate is looked at any more. The socket stays open: an agent that loses its daemon while
    // pages are out ends the program.
    member.pointee.link = nil
    expelled = (link, what)
  }

  /// A batch per round: whoever fights that keeps nobody else waiting.
  private func goOnExpelling(_ member: Member) {
    switch member.pointee.restoreStep(from: 0, below: .max, buffers) {
    case .restored: return
    case .changing: rest(1)
    case .reading: _ = vs_wait_readable(buffers.reader.descriptor, 1000)
    case .gone: end(0, violation: nil)
    case .finished: letGo(member, violation: expelled?.violation)
    }
  }

  /// Everything is restored: unregisters it all and sends the agent away.
  private func letGo(_ member: Member, violation: StaticString?) {
    guard let index = members.firstIndex(of: member) else { return }
    if index == 0 { expelled?.link.publish(held: 0) }
    member.pointee.poisonDoubtful()
    while member.pointee.registered.count > 0 { unregister(member.pointee.registered[0], member) }
    member.pointee.wakeAll()
    member.pointee.link?.dismissAgent()
    if index == 0 { expelled?.link.release() }
    end(index, violation: violation, isDetached: true)
  }

  // MARK: - Coming and going

  /// From the event itself, before anything else is served.
  func childForked(of parent: inout TargetState, _ uffd: Userfault) {
    defer { descriptors.refill() }
    guard let (id, token) = family.identifiersForChild(in: target.group) else {
      // More address spaces than descriptors can name: the child must not read zeros.
      abandonChild(uffd, of: parent)
      return
    }
    let counters = TargetCounters.create()
    guard var state = try? parent.fork(uffd: uffd, id: id, token: token, counters: counters, layer: layer) else {
      counters.destroy()
      family.freeIdentifier(id, of: target.group)
      abandonChild(uffd, of: parent)
      return
    }
    state.processID = 0
    let member = Member.allocate(capacity: 1)
    member.initialize(to: state)
    members.append(member)
    family.childAppeared(token: token, servedBy: self)
  }

  /// A child that cannot be served: what it inherited raises SIGBUS. Where that cannot be had its memory stays with this process, where nobody
  /// serves it: it waits, and never reads zeros.
  private func abandonChild(_ uffd: Userfault, of parent: TargetState) {
    var cursor: UInt64 = 0
    var parent = parent
    var isPoisoned = true
    while let found = parent.table.next(from: cursor, below: .max) {
      cursor = found.vpn + 1
      if PageTableEntry.isSlot(found.entry), !poison(found.vpn, of: uffd, parent) { isPoisoned = false }
    }
    if isPoisoned { Glibc.close(uffd.descriptor) }
  }

  /// The child may be changing its address space, or forking, already. false: it does not come to an end.
  private func poison(_ page: UInt64, of uffd: Userfault, _ parent: TargetState) -> Bool {
    for _ in 0..<1000 {
      switch uffd.poison(page * UInt64(pageSize), length: pageSize) {
      case .filled, .exists, .unmapped, .gone: return true
      case .changing, .failed: break
      }
      withUnsafeTemporaryAllocation(of: uffd_msg.self, capacity: 16) { messages in
        for index in 0..<max(0, uffd.read(into: messages.baseAddress!, capacity: 16)) {
          if case .fork(let descriptor) = Userfault.decode(messages[index]) {
            abandonChild(Userfault(descriptor: descriptor), of: parent)
          }
        }
      }
      sched_yield()
    }
    return false
  }

  /// Which processes children are that have been there for a while. Their numbers are in the family page, where the target can write
  /// anything; so the context is asked: a token that was put into a child's own memory by its userfaultfd is in no other process.
  private func identifyChildren() {
    guard members.count > (hasTarget ? 1 : 0) else { return }
    let now = vs_monotonic_ns()
    for index in (hasTarget ? 1 : 0)..<members.count where members[index].pointee.isToBeIdentified(now) {
      guard members[index].pointee.placeToken(buffers), let processID = process(of: members[index]) else { continue }
      let statm = open("/proc/\(processID)/statm", O_RDONLY | O_CLOEXEC)
      guard statm >= 0 else { continue }
      members[index].pointee.processID = processID
      family.childIdentified(
        YoungProcess(token: members[index].pointee.token, processID: processID, statm: statm), of: self)
    }
  }

  private func process(of child: Member) -> Int32? {
    let page = target.familyPage
    let next = Int(vswap_load(vswap_family_next(page)))
    // The latest ones first.
    for place in (max(0, next - 64)..<next).reversed() {
      let processID = Int32(bitPattern: vswap_family_child(page, UInt32(place % 64)))
      if isProcess(processID, of: child) { return processID }
    }
    // It was made without fork handlers, or has another number where it is.
    for parent in members where parent.pointee.processID > 0 {
      if let found = ChildProcesses.of(parent.pointee.processID).first(where: { isProcess($0, of: child) }) { return found }
    }
    return nil
  }

  private func isProcess(_ processID: Int32, of child: Member) -> Bool {
    guard processID > 0, !members.contains(where: { $0.pointee.processID == processID }) else { return false }
    var token: UInt64 = 0
    return vs_peek(processID, child.pointee.identityPage * UInt64(pageSize), &token) == 0 && token == child.pointee.token
  }

  private func indexOfChild(_ token: UInt64) -> Int? {
    ((hasTarget ? 1 : 0)..<members.count).first { members[$0].pointee.token == token }
  }

  private func handOver(_ token: UInt64) -> HandOver? {
    guard let index = indexOfChild(token) else { return nil }
    let member = members.remove(at: index)
    // Its new pager reads those pages again.
    buffers.reader.abandon(token) { member.pointee.keep($0) }
    family.childDisappeared(token: token, freeing: nil, of: self)
    return HandOver(member: member)
  }

  /// Nobody took it in time.
  private func takeBack(_ given: HandOver) {
    members.append(given.member)
    family.childCameBack(token: given.member.pointee.token, to: self)
  }

  /// The program has ended, or executes something else. The address space lives until the agent leaves it.
  private func dismissAgent() {
    let link = members[0].pointee.link!
    guard !link.isDismissed else { return }
    vs_epoll_remove(quiet, link.program)
    members[0].pointee.link!.abandonCommands()
    members[0].pointee.link!.dismissAgent()
  }

  /// The thread that the program began with has gone. Where another one has the address space still the program lives on, and nobody
  /// tells when it leaves that.
  private func lookForProgram(_ member: Member) {
    let link = member.pointee.link!
    let now = vs_monotonic_ns()
    guard !link.isDismissed, now >= nextLookForProgram else { return }
    nextLookForProgram = now + 50_000_000
    if vs_shares_memory(member.pointee.processID, target.processID) == 0 { dismissAgent() }
  }

  /// The agent's end of the socket closed. The process ended or executes something else: its memory may live on for a moment
  /// in a vfork child, and goes on being served then. Or somebody has killed the agent alone: everything goes back.
  private func agentLeft() {
    let member = members[0]
    if case .gone = member.pointee.uffd.probe(at: member.pointee.probeAddress) {
      end(0, violation: nil)
      return
    }
    if let link = member.pointee.link, !link.isDismissed, vs_wait_readable(link.program, 0) == 0 {
      violation = "its agent has ended"
      return
    }
    // Dying threads are on their way out; look again in a millisecond.
    var none = pollfd(fd: -1, events: 0, revents: 0)
    _ = poll(&none, 1, 1)
  }

  private func end(_ index: Int, violation: StaticString?, isDetached: Bool = false) {
    let member = members.remove(at: index)
    let wasTarget = hasTarget && index == 0
    if let link = member.pointee.link { unwatch(link) }
    let token = member.pointee.token
    let id = member.pointee.id
    let counters = member.pointee.counters
    member.pointee.destroy(layer: layer)
    member.deinitialize(count: 1)
    member.deallocate()
    descriptors.refill()
    if wasTarget {
      hasTarget = false
      expelled?.link.destroy()
      expelled = nil
      if let request = evictRequest {
        request.promise.fulfil(EvictResult(pages: counters.evictions - request.before))
        evictRequest = nil
      }
      family.targetEnded(target, becauseOf: violation.map { "\($0)" }, isDetached: isDetached)
    } else {
      counters.destroy()
      family.childDisappeared(token: token, freeing: id, of: self)
    }
  }
}
