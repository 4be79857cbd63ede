import CVSwapWire
import Glibc

/// One process that the daemon serves, as others than its pager see it.
final class Target: @unchecked Sendable {
  let id: UInt32
  let processID: Int32
  /// The agent, which has the same memory: what the kernel says of that can be read there even when the program's main thread has gone.
  let memoryID: Int32
  let name: String
  let group: Group
  let counters: TargetCounters
  /// /proc/PID/statm.
  let statm: Int32
  /// A pidfd, or -1 where there was none to be had.
  let process: Int32
  /// Where forked children say their process number, and wait to be told to attach.
  let family: Mapping
  /// Attached as a child: its memory may be shared with its parent's.
  let isForked: Bool
  /// Set before the pager starts; the pager keeps itself alive while it runs.
  weak var pager: Pager?
  /// Children of the pager without an agent. Under the registry's lock.
  var youngChildren = 0
  /// Those of them whose process is known. Under the registry's lock.
  var children: [YoungProcess] = []

  init(
    id: UInt32, processID: Int32, memoryID: Int32, name: String, group: Group, counters: TargetCounters, family: Mapping,
    statm: Int32, process: Int32, isForked: Bool
  ) {
    self.id = id
    self.processID = processID
    self.memoryID = memoryID
    self.name = name
    self.group = group
    self.counters = counters
    self.family = family
    self.isForked = isForked
    self.statm = statm
    self.process = process
  }

  deinit {
    close(statm)
    if process >= 0 { close(process) }
    family.destroy()
    counters.destroy()
  }

  var familyPage: UnsafeMutablePointer<vswap_family> { family.base.assumingMemoryBound(to: vswap_family.self) }
}

/// The process of a child without an agent.
final class YoungProcess: @unchecked Sendable {
  let token: UInt64
  let processID: Int32
  /// /proc/PID/statm.
  let statm: Int32

  /// Takes over `statm`.
  init(token: UInt64, processID: Int32, statm: Int32) {
    self.token = token
    self.processID = processID
    self.statm = statm
  }

  deinit { close(statm) }
}

/// Processes that share one limit.
final class Group: @unchecked Sendable {
  let key: GroupKey
  /// What members hand on to what they start: who shows it is of the group, whatever user it has become.
  let pass: UInt64
  let account: GroupAccount
  // Under the registry's lock.
  var targets: [Target] = []
  var everyTarget = 0
  /// Address spaces with a number of this group: targets, children without an agent, and those in between.
  var addressSpaces = 0
  /// Numbers that are not in use, but stay the group's until its last address space has gone: owner words of slots that are shared since a
  /// fork may name them.
  var idleIdentifiers: [UInt32] = []
  /// The first one: what its dictionary goes by. 0: it has no address space.
  var domain: UInt32 = 0
  /// Processes that were targets and live on without their address space. The group is there as long as one of them is: what they have
  /// executed may attach, and is to find its limit and its totals.
  var remaining: [Remaining] = []
  /// Of its last target.
  var dictionary: Dictionaries.Figures?

  struct Remaining {
    let processID: Int32
    let name: String
    /// A pidfd.
    let process: Int32
    /// It was let go of, rather than that it executed something else.
    let isDetached: Bool
  }

  init(key: GroupKey, pass: UInt64, limit: GroupLimit) {
    self.key = key
    self.pass = pass
    account = .create(limit: limit)
  }

  deinit {
    for process in remaining { close(process.process) }
    account.destroy()
  }
}
