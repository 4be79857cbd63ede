import CUserfault
import CVSwapWire
import Glibc

/// All that the daemon knows about one address space. Owned by exactly one pager at a time, which alone reads and writes it;
/// other threads see `counters` and `account` only. Lives at a fixed place, so that methods work in place.
struct TargetState {
  /// Owner number in slot descriptors.
  let id: UInt32
  /// What the identity page of this address space says.
  let token: UInt64
  var uffd: Userfault
  let account: GroupAccount
  let counters: TargetCounters
  /// nil for a child without an agent.
  var link: AgentLink?
  /// Where /proc shows this address space: the agent's process, which lives as long. 0 while unknown: a child without an agent.
  var processID: Int32
  /// When it is looked for, and how long after that the next time, in monotonic nanoseconds.
  private var identification = (at: UInt64(0), pause: UInt64(20_000_000))
  /// Never kept waiting for room: it is what makes room.
  var agent: Int32 = 0
  /// /proc/PID/pagemap, or -1.
  var pagemap: Int32 = -1
  /// /proc/PID/maps, or -1: for `MappingLookup`.
  var maps: Int32 = -1

  var table: PageTable
  /// Mappings registered with the userfaultfd, as pages. Never fewer slots than this: a slot lies in a registered range.
  var registered: RangeSet
  /// Ranges that the target discards right now: REMOVE was read, the kernel may not have zapped them yet. What is
  /// resident there is old; evicting it would bring it back. A page leaves when the pager fills it or sees it missing.
  var discarded: RangeSet
  /// Where the agent may have been when it died: a page that is missing there was discarded, or is lost.
  var doubtful: RangeSet
  /// Mappings whose flags allow eviction, as of the last look at smaps.
  var evictable: RangeSet
  /// Counts mappings that moved.
  var moves: UInt64 = 0
  /// Counts events that move or remove mappings.
  var layoutGeneration: UInt64 = 0
  var evictableGeneration: UInt64 = .max
  /// `registered` was compared with the kernel's view once, while that was not changing. A child has it from its parent.
  var isCompared: Bool
  var sweep = Sweep()
  /// The look at smaps that is under way.
  var look = Look()
  var growth = GrowthWalk()

  /// Never registered: the preload library's mappings.
  var privateRanges: PrivateRanges
  var identityPage: UInt64
  /// The first of the VSWAP_BELLS pages that are touched to announce new memory; with none, a page that no address has.
  var bells: UInt64 = .max / 2
  /// Faults of threads that may not grow the group now.
  let waiting: UnsafeMutablePointer<Fault>
  var waitingCount = 0
  var pending = PendingMoves()
  /// Monotonic nanoseconds since which the kernel refuses to fill pages though no event is left to read; 0: it does not.
  var refusedSince: UInt64 = 0
  /// A fork waits until there is a descriptor for its child.
  var isShortOfDescriptors = false
  /// A thread was granted a range: nothing is registered or evicted until it is done.
  var requestGranted = false
  var streams = ReadStreams()
  var copyYield = CopyYield()
  var strides = Strides()
  /// Pages that reads of a restore have brought, until it counts them.
  var restored = 0
  /// Nobody knows any more which page is where, or which one is lost: every fault raises SIGBUS.
  var isBroken = false

  static let waitingCapacity = 1024

  init(
    id: UInt32, token: UInt64, uffd: Userfault, account: GroupAccount, counters: TargetCounters, link: AgentLink?,
    processID: Int32, table: PageTable, attach: vswap_attach
  ) {
    self.id = id
    self.token = token
    self.uffd = uffd
    self.account = account
    self.counters = counters
    self.link = link
    self.processID = processID
    self.table = table
    isCompared = link != nil
    registered = RangeSet(coalesceAdjacent: false)
    discarded = RangeSet(coalesceAdjacent: true)
    doubtful = RangeSet(coalesceAdjacent: true)
    evictable = RangeSet(coalesceAdjacent: false)
    identityPage = attach.identity_address / UInt64(pageSize)
    privateRanges = PrivateRanges(attach)
    waiting = .allocate(capacity: Self.waitingCapacity)
  }

  /// Releases every slot and descriptor. The address space has gone, or nothing is registered in it any more.
  mutating func destroy(layer: SlotLayer) {
    account.swappedChanged(by: -table.slotCount)
    table.destroy(layer: layer)
    registered.destroy()
    discarded.destroy()
    doubtful.destroy()
    evictable.destroy()
    look.destroy()
    waiting.deallocate()
    pending.destroy()
    streams.destroy()
    strides.destroy()
    link?.destroy()
    link = nil
    if pagemap >= 0 { close(pagemap) }
    if maps >= 0 { close(maps) }
    close(uffd.descriptor)
  }

  @inline(__always)
  func publishSwapped() {
    counters.setSwapped(table.slotCount)
    link?.publish(held: table.slotCount)
  }

  /// Its agent keeps the gate, so nothing of it can be served: it is stopped, most likely.
  @inline(__always)
  var isKept: Bool { link.map { $0.keptSince != 0 } ?? false }

  /// Whether to find out now which process a child is: not before it has lived for a while, and less and less often.
  mutating func isToBeIdentified(_ now: UInt64) -> Bool {
    guard processID == 0 && now >= identification.at else { return false }
    let isFirst = identification.at == 0
    identification.at = now + identification.pause
    identification.pause = min(identification.pause * 2, 2_000_000_000)
    return !isFirst
  }

  func isPrivate(_ start: UInt64, _ end: UInt64) -> Bool { privateRanges.overlap(start, end) }

  /// An address that is never registered, where the address space's life can be asked for.
  var probeAddress: UInt64 { privateRanges.guardPage * UInt64(pageSize) }
}

/// What the agent touches while it evicts, in pages: the preload library's mappings, and the data of libc and the dynamic linker.
struct PrivateRanges {
  private var starts: (UInt64, UInt64, UInt64, UInt64)
  private var ends: (UInt64, UInt64, UInt64, UInt64)

  init(_ attach: vswap_attach) {
    starts = attach.private_start
    ends = attach.private_end
  }

  func overlap(_ start: UInt64, _ end: UInt64) -> Bool {
    let low = start * UInt64(pageSize)
    let high = end * UInt64(pageSize)
    return (low < ends.0 && starts.0 < high) || (low < ends.1 && starts.1 < high)
      || (low < ends.2 && starts.2 < high) || (low < ends.3 && starts.3 < high)
  }

  /// The library's first mapping begins with a guard page, which nobody registers.
  var guardPage: UInt64 { starts.0 / UInt64(pageSize) }
}

/// The registration of all mappings that can grow, in parts: there may be many.
struct GrowthWalk {
  /// Where it goes on; nil: it has been through.
  var cursor: UInt64?
  /// It is to begin (anew) as soon as it may.
  var isWanted = false
  /// Nanoseconds of CPU time that it took so far, and monotonic ones before which it does not begin anew: a quarter of the time at most.
  var cost: UInt64 = 0
  var notBefore: UInt64 = 0

  /// false: there is nothing to do.
  mutating func begin(at now: UInt64) -> Bool {
    if cursor == nil && isWanted && now >= notBefore { (cursor, isWanted, cost) = (0, false, 0) }
    return cursor != nil
  }

  mutating func end(at now: UInt64) {
    cursor = nil
    notBefore = now + 3 * cost
  }
}

/// A look at smaps, in pieces: reading it may take long.
struct Look {
  /// What may be evicted, as far as the look has come.
  var found = RangeSet(coalesceAdjacent: false)
  /// The end of what was read.
  var cursor: UInt64 = 0
  /// The kernel was quiet after every piece.
  var isQuiet = true
  /// `layoutGeneration` when it began.
  var layout: UInt64 = 0
  /// Nanoseconds of CPU time that it took so far, and that the last whole one took.
  var cost: UInt64 = 0
  var lastCost: UInt64 = 0
  /// Looks that have ended.
  var count = 0

  mutating func begin(layout: UInt64) {
    found.removeAll()
    (cursor, cost, isQuiet, self.layout) = (0, 0, true, layout)
  }

  /// Whatever was found is in use by now, or nobody's.
  mutating func end() {
    count += 1
    lastCost = cost
    found.removeAll()
  }

  func destroy() { found.destroy() }
}

/// Where the next eviction begins, and whether the last round through memory got anywhere.
struct Sweep {
  /// Page from which the next scan goes on.
  var hand: UInt64 = 0
  var movedSinceWrap = 0
  /// Rounds in a row that moved nothing.
  var wraps = 0
  /// Rounds ever.
  var rounds = 0
  /// Monotonic nanoseconds before which no new round begins, after one in vain.
  var pausedUntil: UInt64 = 0
  /// When the last look at smaps ended.
  var refreshedAt: UInt64 = 0
  /// Pages that a scan looks at: more where there is little in them.
  var stride: UInt64 = 512
  /// How many looks have to have ended before a round counts as in vain.
  var looksNeeded = 0
  /// How many looks had ended when there was nothing to sweep.
  var restedAfter = 0

  /// Goes on behind what the keeper does not want to be looked at.
  mutating func leaveOut(_ counters: TargetCounters) {
    let pages = counters.skip
    guard pages > 0 else { return }
    counters.skip = 0
    hand += UInt64(pages)
  }
}
