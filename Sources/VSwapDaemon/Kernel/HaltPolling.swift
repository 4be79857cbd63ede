import CUserfault
import Glibc
import Synchronization

/// Keeps CPUs of a small virtual machine from halting between faults that follow each other quickly.
///
/// A fault takes two wake-ups, and waking a CPU that has halted costs 25 us or more in a guest, longer than all the rest. Guest kernels poll before they
/// halt where their host has not turned that off (Documentation/virt/guest-halt-polling.rst); where the daemon may, it asks them to (`CPULatency`).
///
/// The scheduler sends a thread that is woken to an idle CPU. Where one thread faults it does so on the pager's CPU best, which takes no wake-up between
/// CPUs at all; so a thread spins on those CPUs where the pager is not: they count as used, and do not halt either.
///
/// It is an ordinary thread of the least weight, not one of SCHED_IDLE: the scheduler takes a CPU with nothing but such threads for an idle one
/// (`sched_idle_cpu`), which it sends threads to and pulls threads to. It offers the CPU every two microseconds or so, which threads of its own
/// scheduler group (session, control group) take at once, and others within a slice; and where somebody is found to have taken it for long the CPU is left
/// alone for a while.
///
/// A trivial handle; any thread may call.
struct HaltPolling: @unchecked Sendable {
  private struct Place: ~Copyable {
    /// Monotonic nanoseconds until which the CPU shall not halt.
    let until = Atomic<UInt64>(0)
    /// Monotonic nanoseconds before which it is left alone.
    let restsUntil = Atomic<UInt64>(0)
    let isAsleep = Atomic<Bool>(true)
    let turns = Atomic<UInt64>(0)
    let bell: Int32

    init(bell: Int32) { self.bell = bell }
  }

  /// With more CPUs nobody knows where a thread will be woken.
  private static let mostCPUs = 4
  /// Nanoseconds without a turn: somebody else has use for the CPU. Interrupts take less, also the timer's, which can take 40 us in a guest, and so do
  /// threads that run for a moment only. To let the CPU halt for them would draw pager and program apart.
  private static let interruption: UInt64 = 500_000
  /// Nanoseconds for which a CPU that others use is left alone.
  private static let rest: UInt64 = 1_000_000

  private let places: UnsafeMutablePointer<Place>
  private let count: Int
  private let latency: CPULatency

  /// For this machine: of use in a virtual machine with few CPUs only, and only where nobody counts the daemon's CPU time against a quota
  /// that the program may have to share.
  static func create() -> HaltPolling {
    let cpus = sysconf(Int32(_SC_NPROCESSORS_ONLN))
    guard (2...mostCPUs).contains(cpus), vs_is_guest() != 0, !CPUQuota.isSet else { return create(cpus: 0, latency: .ofNoUse) }
    return create(cpus: cpus, latency: .create())
  }

  /// For the first `cpus` CPUs; 0: it does nothing.
  static func create(cpus: Int, latency: CPULatency) -> HaltPolling {
    let places = UnsafeMutablePointer<Place>.allocate(capacity: max(1, cpus))
    for index in 0..<cpus {
      let bell = vs_semaphore()
      guard bell >= 0 else {
        // Without one for each CPU nobody spins.
        for other in 0..<index { close((places + other).move().bell) }
        return HaltPolling(places: places, count: 0, latency: latency)
      }
      (places + index).initialize(to: Place(bell: bell))
    }
    return HaltPolling(places: places, count: cpus, latency: latency)
  }

  var isOfUse: Bool { count > 1 }
  /// CPUs that are idle do not halt when asked, without anybody spinning there.
  var kernelPolls: Bool { latency.isOfUse }

  /// The threads run for as long as the daemon does. A CPU without one halts as it always did.
  func start() {
    latency.start()
    for cpu in 0..<count { try? Thread.start("vswap-halt-\(cpu)") { [self] in run(cpu) } }
  }

  /// CPUs that are idle poll until `until`, in monotonic nanoseconds, if the kernel does that for the daemon.
  func pollIdle(until: UInt64) { latency.hold(until: until) }

  /// Threads spin on all CPUs but `here` from `now` until `until`, in monotonic nanoseconds.
  func keepBusy(except here: Int32, from now: UInt64, until: UInt64) {
    for cpu in 0..<count where cpu != Int(here) && places[cpu].restsUntil.load(ordering: .relaxed) <= now {
      places[cpu].until.store(until, ordering: .sequentiallyConsistent)
      guard places[cpu].isAsleep.load(ordering: .sequentiallyConsistent) else { continue }
      if places[cpu].isAsleep.exchange(false, ordering: .sequentiallyConsistent) { _ = vs_eventfd_signal(places[cpu].bell) }
    }
    // The pager has come to where somebody spins for it.
    if here >= 0, Int(here) < count { places[Int(here)].until.store(0, ordering: .relaxed) }
  }

  /// How often the CPU has spun so far.
  func turns(_ cpu: Int) -> UInt64 { places[cpu].turns.load(ordering: .relaxed) }

  private func run(_ cpu: Int) {
    // With a share like the programs' it would be in the way.
    guard vs_humble_thread() == 0, vs_set_cpu(Int32(cpu)) == 0 else { return }
    while vs_semaphore_take(places[cpu].bell) == 0 {
      // A CPU that went away had let go of the thread.
      if vs_current_cpu() != Int32(cpu) && vs_set_cpu(Int32(cpu)) != 0 { return }
      repeat {
        places[cpu].isAsleep.store(false, ordering: .sequentiallyConsistent)
        spin(cpu)
        places[cpu].isAsleep.store(true, ordering: .sequentiallyConsistent)
        // Somebody who came before the last line saw it awake.
      } while vs_monotonic_ns() < places[cpu].until.load(ordering: .sequentiallyConsistent)
    }
  }

  private func spin(_ cpu: Int) {
    var last = vs_monotonic_ns()
    while last < places[cpu].until.load(ordering: .relaxed) {
      for _ in 0..<32 { vs_pause() }
      sched_yield()
      let now = vs_monotonic_ns()
      if now - last > Self.interruption {
        places[cpu].restsUntil.store(now + Self.rest, ordering: .relaxed)
        places[cpu].until.store(0, ordering: .sequentiallyConsistent)
        return
      }
      places[cpu].turns.wrappingAdd(1, ordering: .relaxed)
      last = now
    }
  }
}
