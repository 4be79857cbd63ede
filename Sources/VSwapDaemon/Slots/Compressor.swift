import CUserfault
import Glibc

/// Worker threads that compress the oldest pages of the swap cache, off the fault path, and keep the pool compact.
///
/// `nudge` may come from any thread. Workers sleep while the cache holds at most `keep` pages.
final class Compressor: @unchecked Sendable {
  private let layer: SlotLayer
  private let budget: FrameBudget
  /// Pages that stay uncompressed: a refault from here costs a copy.
  private let keep: Int
  private let bell: Int32
  /// Set before the start: the pool is full, or nearly.
  var whenFull: @Sendable () -> Void = {}
  private let preparing = Lock.create()
  private var isPrepared = false

  init(layer: SlotLayer, budget: FrameBudget, keep: Int) throws(KernelError) {
    self.layer = layer
    self.budget = budget
    self.keep = keep
    bell = vs_eventfd()
    guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
  }

  deinit {
    close(bell)
    preparing.destroy()
  }

  func start(workers: Int) throws(KernelError) {
    for number in 0..<workers {
      try Thread.start("vswap-zstd-\(number)") { [self] in run() }
    }
  }

  /// Before a target runs. A daemon without targets stays small; the first one waits some milliseconds while the cache gets its memory,
  /// because later it would hold the lock of the address space that pagers need.
  func prepare() {
    preparing.lock()
    if !isPrepared { layer.cache.populate() }
    isPrepared = true
    preparing.unlock()
  }

  func nudge() { _ = vs_eventfd_signal(bell) }

  private func run() {
    let codec = Codec.create()
    var idle = pollfd(fd: bell, events: Int16(POLLIN), revents: 0)
    while true {
      let isWaiting = layer.cachedPages <= keep || budget.poolFull
      if isWaiting {
        // Nothing rings when room appears in a full pool, hence the time limit.
        let ready = poll(&idle, 1, budget.poolFull ? 20 : 500)
        if ready > 0 { vs_eventfd_clear(bell) }
        if ready == 0 { compactIfLoose() }
      }
      work(codec)
    }
  }

  private func work(_ codec: Codec) {
    while layer.cachedPages > keep {
      switch layer.compressOldest(codec: codec) {
      case .compressed:
        if budget.poolFull { budget.poolFull = false }
        if layer.pool.isNearLimit { whenFull() }
      case .stale: break
      case .nothing: return
      case .poolFull:
        budget.poolFull = true
        whenFull()
        if layer.compact(maximumMoves: 256) == 0 { return }
      }
    }
  }

  /// An eighth of the arena is gaps: worth moving objects for.
  private func compactIfLoose() {
    let now = layer.statistics()
    guard now.arenaBytes > 1 << 20, now.compressedBytes < now.arenaBytes / 8 * 7 else { return }
    _ = layer.compact(maximumMoves: 1024)
  }
}
