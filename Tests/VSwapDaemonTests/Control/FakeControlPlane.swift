import Glibc
import Synchronization
import VSwapAPI

@testable import VSwapDaemon

/// A control plane that remembers what it was asked, and says what the test wants to hear.
final class FakeControlPlane: ControlPlane, @unchecked Sendable {
  enum Call: Equatable {
    case evict(TargetSelector, Int?)
    case restore(TargetSelector)
    case setLimit(String, MemoryLimit)
    case setPoolLimit(Int)
    case detach(Int32)
    case swapon(String, Int?, Int?, discards: Bool = false)
    case swapoff(String?, Bool)
    /// The report of a swapoff returned false.
    case cancelled
  }

  /// Two streams that are cancelled at once wait for each other here. The thread sanitizer does not see a `Mutex` of the standard library being
  /// taken after a wait, and reported a race that was none.
  private let lock = Lock.create()
  private var recorded: [Call] = []
  /// Thrown by every call but `status`.
  let refusal: ControlError?
  /// Whether `evict` blocks.
  let isHeld: Atomic<Bool>
  /// What a swapoff reports, and how long it takes before each line.
  let swapoffLines: [SwapoffLine]
  let lineMicroseconds: UInt32
  /// Thrown by `swapoff` after its lines.
  let lateRefusal: ControlError?
  /// Lines that swapoffs have reported.
  let reportedLines = Atomic<Int>(0)

  init(
    refusal: ControlError? = nil, isHeld: Bool = false, swapoffLines: [SwapoffLine] = [],
    lineMicroseconds: UInt32 = 0, lateRefusal: ControlError? = nil
  ) {
    self.refusal = refusal
    self.isHeld = Atomic(isHeld)
    self.swapoffLines = swapoffLines
    self.lineMicroseconds = lineMicroseconds
    self.lateRefusal = lateRefusal
  }

  static let area = AreaStatus(
    path: "/var/swap 0", type: .file, sizeBytes: 2 << 30, usedBytes: 512 << 20, slots: 9, priority: -2,
    state: "active", direct: false, readErrors: 1, writeErrors: 2)

  /// A line of progress; `percent` of 1000 slots and 1 MiB are done.
  static func progress(_ path: String, percent: Int) -> SwapoffLine {
    .progress(
      SwapoffProgressLine(
        path: path, slotsDone: percent * 10, slotsTotal: 1000, bytesDone: percent << 20 / 100,
        bytesTotal: 1 << 20, seconds: Double(percent) / 100))
  }

  deinit { lock.destroy() }

  var calls: [Call] {
    lock.lock()
    defer { lock.unlock() }
    return recorded
  }

  func status() -> DaemonStatus {
    let target = TargetStatus(
      pid: 7, name: "redis", residentBytes: 66_000_000, swappedPages: 3, evictions: 5, faults: 4, refaults: 2,
      zeroFills: 1, state: "active")
    let totals = GroupTotals(
      evictions: 5, faults: 4, refaults: 2, zeroFills: 1, peakResidentBytes: 67_108_864, peakSwappedPages: 9,
      targets: 1)
    func group(_ id: String, _ mode: LimitMode, _ targets: [TargetStatus]) -> GroupStatus {
      GroupStatus(
        id: id, limitBytes: 67_108_864, limitMode: mode, residentBytes: 66_000_000, swappedPages: 3, state: .overLimit,
        targets: targets, totals: totals, dictionary: mode == .fixed ? DictionaryStatus(bytes: 90_000, savesPercent: 12.5) : nil)
    }
    return DaemonStatus(
      pid: 42, uptimeSeconds: 1.5,
      pool: PoolStatus(
        objects: 3, originalBytes: 12288, compressedBytes: 4096, arenaBytes: 65536, limitBytes: 0,
        state: .full),
      cache: PageCount(pages: 6), zero: PageCount(pages: 8), metadataBytes: 100,
      areas: [Self.area],
      groups: [group("red\"is-7", .fixed, [target])], endedGroups: [group("sort-6", .auto, [])])
  }

  func evict(_ selector: TargetSelector, bytes: Int?) throws(ControlError) -> EvictReply {
    while isHeld.load(ordering: .acquiring) { usleep(1000) }
    try record(.evict(selector, bytes))
    return EvictReply(evictedPages: 2, evictedBytes: 8192)
  }

  func restore(_ selector: TargetSelector) throws(ControlError) -> RestoreReply {
    try record(.restore(selector))
    return RestoreReply(restoredPages: 3, restoredBytes: 12288)
  }

  func setLimit(group: String, limit: MemoryLimit) throws(ControlError) {
    try record(.setLimit(group, limit))
  }

  func setPoolLimit(bytes: Int) throws(ControlError) {
    try record(.setPoolLimit(bytes))
  }

  func detach(pid: Int32) throws(ControlError) -> RestoreReply {
    try record(.detach(pid))
    return RestoreReply(restoredPages: 1, restoredBytes: 4096)
  }

  func swapon(path: String, sizeBytes: Int?, priority: Int?, discards: Bool) throws(ControlError) -> AreaStatus {
    try record(.swapon(path, sizeBytes, priority, discards: discards))
    var area = Self.area
    area.path = path
    return area
  }

  func swapoff(path: String?, dryRun: Bool, report: (SwapoffLine) -> Bool) throws(ControlError) {
    try record(.swapoff(path, dryRun))
    for line in swapoffLines {
      usleep(lineMicroseconds)
      guard report(line) else { return try record(.cancelled) }
      reportedLines.add(1, ordering: .relaxed)
    }
    if let lateRefusal { throw lateRefusal }
  }

  private func record(_ call: Call) throws(ControlError) {
    lock.lock()
    recorded.append(call)
    lock.unlock()
    if let refusal { throw refusal }
  }
}
