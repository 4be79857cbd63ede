import VSwapAPI

/// Whom a command is for.
enum TargetSelector: Equatable, Sendable {
  case pid(Int32)
  case group(String)

  /// Digits alone are a process id, anything else names a group. Nil for an empty text and for a number that
  /// no process can have.
  init?(_ text: String) {
    if text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) {
      guard let pid = Int32(text), pid > 0 else { return nil }
      self = .pid(pid)
    } else {
      self = .group(text)
    }
  }
}

/// What the control API can ask of the daemon. All calls may block, for seconds; they come from several
/// threads at once.
protocol ControlPlane: AnyObject, Sendable {
  func status() -> DaemonStatus
  /// Pages out up to `bytes` bytes, nil for all that can be evicted.
  func evict(_ selector: TargetSelector, bytes: Int?) throws(ControlError) -> EvictReply
  /// Brings everything back.
  func restore(_ selector: TargetSelector) throws(ControlError) -> RestoreReply
  func setLimit(group: String, limit: MemoryLimit) throws(ControlError)
  /// Less than the pool has now: what is too much goes to swap areas, or stays where there is none.
  func setPoolLimit(bytes: Int) throws(ControlError)
  /// Brings everything back, then lets the process go.
  func detach(pid: Int32) throws(ControlError) -> RestoreReply
  /// Makes a file or device a swap area. `path` is absolute; `priority` nil: below all others; `discards`: what is free of it is given back.
  func swapon(path: String, sizeBytes: Int?, priority: Int?, discards: Bool) throws(ControlError) -> AreaStatus
  /// Retires an area, or all of them, one after the other, when `path` is nil. `report` gets lines of progress and each area's
  /// result, on the calling thread; false from it cancels.
  func swapoff(path: String?, dryRun: Bool, report: (SwapoffLine) -> Bool) throws(ControlError)
}
