import CUserfault
import Glibc
import Synchronization

/// Keeps CPUs of a virtual machine from halting between faults that follow each other quickly.
///
/// A fault takes two wake-ups, and waking a CPU that has halted costs 25 us or more in a guest, longer than all the rest. So a thread of the
/// scheduler's lowest class (SCHED_IDLE) spins there for some microseconds more: everything else goes before it at once, and to the scheduler the
/// CPU is idle to take. It also counts as used, so that threads that wake one another stay together on the CPU next to it. Guest kernels do the same themselves where their host has not turned it off (Documentation/virt/guest-halt-polling.rst).
///
/// A trivial handle; any thread may call. Threads are made when they are needed first, and stay.
struct HaltPolling: @unchecked Sendable {
  private struct Place: ~Copyable {
    /// Monotonic nanoseconds until which the CPU shall not halt.
    let until = Atomic<UInt64>(0)
    let isAsleep = Atomic<Bool>(true)
    let hasThread = Atomic<Bool>(false)
    let turns = Atomic<UInt64>(0)
    let bell: Int32

    init(bell: Int32) { self.bell = bell }
  }

  private let places: UnsafeMutablePointer<Place>
  private let count: Int

  /// For this machine: of use in a virtual machine with several CPUs only, and only where nobody counts the daemon's CPU time against a quota
  /// that the program may have to share.
  static func create() -> HaltPolling {
    let cpus = min(64, sysconf(Int32(_SC_NPROCESSORS_CONF)))
    return create(cpus: cpus > 1 && vs_is_guest() != 0 && !CPUQuota.isSet ? cpus : 0)
  }

  /// For the first `cpus` CPUs; 0: it does nothing.
  static func create(cpus: Int) -> HaltPolling {
    let places = UnsafeMutablePointer<Place>.allocate(capacity: max(1, cpus))
    for index in 0..<cpus {
      let bell = vs_semaphore()
      guard bell >= 0 else { return HaltPolling(places: places, count: index) }
      (places + index).initialize(to: Place(bell: bell))
    }
    return HaltPolling(places: places, count: cpus)
  }

  var isOfUse: Bool { count > 1 }

  /// The two CPUs of a ping-pong do not halt before `until`, in monotonic nanoseconds; on a small machine none does, since a thread that is woken
  /// may go to any of them.
  func keep(_ one: Int32, _ other: Int32, until: UInt64) {
    guard count > Self.fewCPUs else {
      for cpu in 0..<count { keep(Int32(cpu), until: until) }
      return
    }
    keep(one, until: until)
    if other != one { keep(other, until: until) }
  }

  private static let fewCPUs = 4

  private func keep(_ cpu: Int32, until: UInt64) {
    guard cpu >= 0, cpu < count else { return }
    let place = places + Int(cpu)
    place.pointee.until.store(until, ordering: .sequentiallyConsistent)
    guard place.pointee.isAsleep.load(ordering: .sequentiallyConsistent) else { return }
    if place.pointee.isAsleep.exchange(false, ordering: .sequentiallyConsistent) { wake(Int(cpu)) }
  }

  /// How often the CPU has spun so far.
  func turns(_ cpu: Int32) -> UInt64 {
    cpu >= 0 && cpu < count ? places[Int(cpu)].turns.load(ordering: .relaxed) : 0
  }

  @inline(never)
  private func wake(_ cpu: Int) {
    if !places[cpu].hasThread.exchange(true, ordering: .acquiringAndReleasing) {
      // Without it the CPU halts as it always did.
      try? Thread.start("vswap-halt-\(cpu)") { [self] in run(cpu) }
    }
    _ = vs_eventfd_signal(places[cpu].bell)
  }

  private func run(_ cpu: Int) {
    // Anywhere else, or with a share like the programs', it would be in the way.
    guard vs_set_cpu(Int32(cpu)) == 0, vs_idle_thread() == 0 else { return }
    let place = places + cpu
    while true {
      guard vs_semaphore_take(place.pointee.bell) == 0 else { return }
      repeat {
        place.pointee.isAsleep.store(false, ordering: .sequentiallyConsistent)
        while vs_monotonic_ns() < place.pointee.until.load(ordering: .relaxed) {
          for _ in 0..<32 { vs_pause() }
          place.pointee.turns.wrappingAdd(1, ordering: .relaxed)
        }
        place.pointee.isAsleep.store(true, ordering: .sequentiallyConsistent)
        // Somebody who came before the last line saw it awake.
      } while vs_monotonic_ns() < place.pointee.until.load(ordering: .sequentiallyConsistent)
    }
  }
}
