import CUserfault

/// The CPU share of an agent. While it evicts it does what direct reclaim does in the kernel, and has to get its turn beside threads
/// that allocate; so it is a very nice thread's opposite then, and what it was before once there is nothing to evict.
///
/// It runs in a process that nobody trusts. So the share is for as long as pages are asked of it, is not inherited by what it starts, and is taken
/// back from who uses more of it than evicting can need. Belongs to the pager's thread.
struct AgentBoost {
  /// What an agent has done with its CPU time.
  struct Account {
    /// CPU time that evicting a page may take: some twenty times what it does take, and so much more for all else.
    static let perPage: UInt64 = 50_000
    static let besides: UInt64 = 20_000_000
    /// How often it is looked at, and how long an agent goes without that was found to do something else. All in nanoseconds.
    static let window: UInt64 = 100_000_000
    static let penance: UInt64 = 1_000_000_000

    private var begin: UInt64 = 0
    private var time: UInt64 = 0
    private var pages = 0
    private(set) var deniedUntil: UInt64 = 0

    /// Begins a window: `time` is the CPU time used so far, `pages` how many were evicted so far.
    mutating func open(now: UInt64, time: UInt64, pages: Int) {
      (begin, self.time, self.pages) = (now, time, pages)
    }

    func isDue(now: UInt64) -> Bool { now - begin >= Self.window }

    /// Ends a window and begins the next. false: it has used its time for something else.
    mutating func isHonest(now: UInt64, time: UInt64, pages: Int) -> Bool {
      let (used, evicted) = (time - min(time, self.time), UInt64(max(0, pages - self.pages)))
      open(now: now, time: time, pages: pages)
      if used <= Self.besides + evicted * Self.perPage { return true }
      deniedUntil = now + Self.penance
      return false
    }
  }

  /// How long after the last command it stays favoured: changing it costs two system calls.
  private static let linger: UInt64 = 50_000_000

  private let agent: Int32
  private let program: Int32
  private var account = Account()
  /// What it was before; nil: it is that.
  private var usual: vs_weight?
  private var lastAsked: UInt64 = 0

  /// Both as the kernel attests them; but a process may have ended, and its number may be another one's.
  init(agent: Int32, of program: Int32) {
    self.agent = agent
    self.program = program
  }

  var isOn: Bool { usual != nil }

  /// Pages are being asked of it; `pages` were evicted so far.
  mutating func asked(pages: Int) {
    let now = vs_monotonic_ns()
    lastAsked = now
    if usual != nil {
      if account.isDue(now: now), !account.isHonest(now: now, time: time, pages: pages) { end() }
      return
    }
    guard now >= account.deniedUntil, vs_shares_memory(agent, program) == 1 else { return }
    var before = vs_weight()
    guard vs_favour_agent(agent, &before) == 0 else { return }
    usual = before
    account.open(now: now, time: time, pages: pages)
  }

  /// Nothing is asked of it.
  mutating func idle() {
    if usual != nil, vs_monotonic_ns() - lastAsked >= Self.linger { end() }
  }

  /// It is what it was before.
  mutating func end() {
    guard let before = usual else { return }
    usual = nil
    _ = vs_restore_weight(agent, before)
  }

  private var time: UInt64 { vs_cpu_time_of_thread(agent) }
}
