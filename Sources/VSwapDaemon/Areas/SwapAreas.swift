import Glibc

/// A swap area as the status shows it. Sizes are in bytes.
struct AreaInfo: Sendable {
  var path: String
  var isBlockDevice: Bool
  var sizeBytes: Int
  var usedBytes: Int
  /// Physical slots in use.
  var slots: Int
  var priority: Int
  var state: AreaState
  var readErrors: Int
  var writeErrors: Int
  /// false: reads and writes go through the page cache.
  var isDirect: Bool
}

enum AreaState: String, Sendable {
  case active, draining, full, faulty
}

/// How far a swapoff is.
struct SwapoffProgress: Sendable {
  var path: String
  var slotsDone: Int
  var slotsTotal: Int
  var bytesDone: Int
  var bytesTotal: Int
  /// Since it began.
  var nanoseconds: UInt64
}

/// How a swapoff ended.
struct SwapoffResult: Sendable {
  enum State: String, Sendable {
    case off, cancelled, refused
  }

  var path: String
  var slots: Int
  var bytes: Int
  var toTarget: Int
  var toPool: Int
  var toAreas: Int
  var lost: Int
  var wallNanoseconds: UInt64
  var userNanoseconds: UInt64
  var systemNanoseconds: UInt64
  var state: State
  /// Why it was refused, with the figures.
  var reason: String?
}

enum SwapoffError: Error {
  case unknownArea
  case alreadyDraining
  case failed(String)
}

/// The swap areas of the daemon.
final class SwapAreas: @unchecked Sendable {
  /// `priority` nil: the next lower negative one, as swapon(8) gives them: -2, -3, ...
  func add(_ file: AreaFile, priority: Int?) throws(KernelError) -> AreaInfo {
    throw KernelError(call: "swapon", code: ENOSYS)
  }

  func list() -> [AreaInfo] {
    []
  }

  /// Blocks until it is done. `progress` is called a few times a second from the calling thread; false from it cancels.
  func swapoff(
    path: String, dryRun: Bool, progress: (SwapoffProgress) -> Bool
  ) throws(SwapoffError) -> SwapoffResult {
    throw .unknownArea
  }

  /// Closes all areas at the daemon's end; files that vswapd made are removed.
  func closeAll() {}
}
