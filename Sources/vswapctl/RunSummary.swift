import Glibc
import VSwapAPI

/// What `run --stats` says at the end.
struct RunSummary {
  let client: ControlClient
  let group: String
  /// The pool before the command started: what it stored until then was for others.
  let poolBefore: PoolStatus
  /// Programs that were seen to run outside of the group.
  let outsiders: [String]

  /// A second, in steps of `intervalMicroseconds`.
  private static let attempts = 100
  private static let intervalMicroseconds: UInt32 = 10_000

  /// One line.
  func line(afterEndOf process: pid_t) -> String {
    figuresLine(afterEndOf: process) + outsidersNote
  }

  private var outsidersNote: String {
    guard !outsiders.isEmpty else { return "" }
    let names = outsiders.prefix(Self.mostNames).map(EscapedText.line).joined(separator: ", ")
    let processes = outsiders.count == 1 ? "1 process" : "\(outsiders.count) processes"
    return ", at least \(processes) outside of the group (\(names)\(outsiders.count > Self.mostNames ? ", ..." : ""))"
  }
  private static let mostNames = 4

  /// Waits up to a second for a daemon that knows nothing of `process`, and up to a minute for one that still has it: on a busy machine
  /// it may take that to notice the end.
  private func figuresLine(afterEndOf process: pid_t) -> String {
    do {
      var (unknown, known) = (0, 0)
      while unknown < Self.attempts && known < 60 * Self.attempts {
        let status = try client.status()
        if let ended = figures(in: status, without: process) {
          return "vswap: \(group): \(sentence(ended, status.pool))"
        }
        if status.groups.contains(where: { $0.id == group }) { known += 1 } else { unknown += 1 }
        usleep(Self.intervalMicroseconds)
      }
      if known > 0 { return "vswap: \(group): no figures: the daemon has not noticed the end of process \(process)" }
      return "vswap: \(group): the daemon has no figures of it; it never attached"
    } catch {
      return "vswap: \(group): no figures: \(client.explain(error).message)"
    }
  }

  /// The group, once the daemon knows that `process` has gone from it. Descendants may live on.
  private func figures(in status: DaemonStatus, without process: pid_t) -> GroupStatus? {
    guard let running = status.groups.first(where: { $0.id == group }) else {
      return status.endedGroups.last { $0.id == group }
    }
    let isThere = running.targets.contains { $0.pid == process } || running.notHeld.contains { $0.pid == process }
    return isThere ? nil : running
  }

  private func sentence(_ group: GroupStatus, _ pool: PoolStatus) -> String {
    let totals = group.totals
    let limit = group.limitMode == .none ? "no limit" : "limit \(StatusReport.limit(of: group))"
    var parts = ["peak resident \(ByteSize.format(totals.peakResidentBytes)) (\(limit))"]
    if totals.evictions == 0 {
      parts.append("nothing was evicted")
    } else {
      parts.append("\(pageCount(totals.evictions)) evicted")
      parts.append("\(totals.faults) faulted in (\(totals.refaults) from the cache)")
    }
    if totals.zeroFills > 0 { parts.append("\(totals.zeroFills) zero-filled") }
    if totals.peakSwappedPages > 0 {
      parts.append("at most \(ByteSize.format(ByteSize.ofPages(totals.peakSwappedPages))) swapped")
    }
    let original = growth(from: poolBefore.storedOriginalBytes, to: pool.storedOriginalBytes)
    let compressed = growth(from: poolBefore.storedCompressedBytes, to: pool.storedCompressedBytes)
    if let ratio = StatusReport.ratio(original, compressed) {
      parts.append("pool \(ByteSize.format(original)) -> \(ByteSize.format(compressed)) (\(ratio))")
    }
    let reused = growth(from: poolBefore.reusedCopies, to: pool.reusedCopies)
    if reused > 0 { parts.append("\(reused) left again unchanged") }
    if let dictionary = group.dictionary { parts.append("dictionary saves \(whole(dictionary.savesPercent.rounded())) %") }
    if !group.notHeld.isEmpty { parts.append("\(group.notHeld.count) processes not held") }
    if !group.targets.isEmpty { parts.append("\(group.targets.count) processes still running") }
    return parts.joined(separator: ", ")
  }
}
