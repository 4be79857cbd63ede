import CUserfault
import Glibc
import Synchronization

/// Worker threads that compress the oldest pages of the swap cache, off the fault path, and keep the pool compact.
///
/// `nudge` may come from any thread. Workers sleep while the cache holds at most `keep` pages.
final class Compressor: @unchecked Sendable {
  private let layer: SlotLayer
  private let budget: FrameBudget
  /// Pages that stay uncompressed: a refault from here costs a copy.
  private let keep: Int
  private let bell: Int32
  /// For helpers: rung when the cache fills faster than the workers empty it.
  private let alarm: Int32
  private let helping = Atomic<Int>(0)
  private var helpers = 0
  /// Set before the start: the pool is full, or nearly.
  var whenFull: @Sendable () -> Void = {}
  private let preparing = Lock.create()
  private var isPrepared = false
  /// A thread looks after dictionaries.
  private let isAttending = Atomic<Bool>(false)

  init(layer: SlotLayer, budget: FrameBudget, keep: Int) throws(KernelError) {
    self.layer = layer
    self.budget = budget
    self.keep = keep
    bell = vs_eventfd()
    alarm = vs_semaphore()
    guard bell >= 0, alarm >= 0 else { throw KernelError(call: "eventfd", code: -min(bell, alarm)) }
  }

  deinit {
    close(bell)
    close(alarm)
    preparing.destroy()
  }

  /// `helpers` more join in while much has to go at once.
  func start(workers: Int, helpers: Int) throws(KernelError) {
    self.helpers = helpers
    for number in 0..<workers + helpers {
      let codec = try Codec.create()
      try Thread.start("vswap-zstd-\(number)") { [self] in number < workers ? run(codec) : help(codec) }
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

  private func run(_ codec: Codec) {
    var idle = pollfd(fd: bell, events: Int16(POLLIN), revents: 0)
    while true {
      let isWaiting = layer.cachedPages <= keep || budget.poolFull
      if isWaiting {
        // Nothing rings when room appears in a full pool, hence the time limit.
        let ready = poll(&idle, 1, budget.poolFull ? 20 : 500)
        if ready > 0 { vs_eventfd_clear(bell) }
        if ready == 0 { compactIfLoose() }
      }
      work(codec, downTo: keep)
      if layer.dictionaries.needsAttention { attendDictionaries() }
    }
  }

  /// Frames that keep no page for refaults, but take what arrives.
  private var spare: Int { layer.cache.capacity - keep }

  /// At the programs' own priority: behind them it would be kept from the CPU with a lock in its hand that pagers need.
  private func help(_ codec: Codec) {
    while vs_semaphore_take(alarm) == 0 {
      work(codec, downTo: keep + spare / 4)
      helping.subtract(1, ordering: .relaxed)
    }
  }

  private func callHelpers() {
    guard helping.compareExchange(expected: 0, desired: helpers, ordering: .relaxed).exchanged else { return }
    for _ in 0..<helpers { _ = vs_eventfd_signal(alarm) }
  }

  private func work(_ codec: Codec, downTo least: Int) {
    while layer.cachedPages > least {
      if layer.cachedPages > keep + spare / 2 { callHelpers() }
      switch layer.compressOldest(codec: codec) {
      case .compressed:
        if budget.poolFull { budget.poolFull = false }
        if layer.dictionaries.needsAttention { attendDictionaries() }
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

  /// On a thread of its own, since training takes as long as a worker needs for all frames that there are; behind the programs, which
  /// do not wait for it.
  private func attendDictionaries() {
    guard !isAttending.exchange(true, ordering: .acquiring) else { return }
    do throws(KernelError) {
      try Thread.start("vswap-dict") { [self] in
        vs_yield_to_programs(5)
        layer.dictionaries.attend()
        isAttending.store(false, ordering: .releasing)
      }
    } catch {
      // The next page that is compressed, or the next time that there is nothing to do, tries again.
      isAttending.store(false, ordering: .releasing)
    }
  }

  /// An eighth of the arena is gaps: worth moving objects for.
  private func compactIfLoose() {
    let now = layer.statistics()
    guard now.arenaBytes > 1 << 20, now.compressedBytes < now.arenaBytes / 8 * 7 else { return }
    _ = layer.compact(maximumMoves: 1024)
  }
}
