import CUserfault
import Glibc
import Synchronization

/// Has the kernel poll where it would halt a CPU, for as long as somebody asks for it.
///
/// That is what a CPU latency of 0 means to every idle governor (PM QoS, Documentation/power/pm_qos_interface.rst). Whoever wakes a thread on a CPU that
/// polls only sets a flag there, where one that has halted takes an interrupt, in a guest with exits to the host on both sides. It holds for all CPUs of the
/// machine, and the kernel takes the request back when the daemon ends, however that happens.
///
/// A trivial handle; any thread may call.
struct CPULatency: @unchecked Sendable {
  private struct Fields: ~Copyable {
    /// Monotonic nanoseconds until which CPUs shall poll.
    let until = Atomic<UInt64>(0)
    let isAsleep = Atomic<Bool>(true)
    /// The kernel has refused.
    let isBroken = Atomic<Bool>(false)
    let bell: Int32
    let request: Int32

    init(bell: Int32, request: Int32) { (self.bell, self.request) = (bell, request) }
  }

  private static let device = "/dev/cpu_dma_latency"
  /// Of an idle driver that can poll it has this name (drivers/cpuidle/poll_state.c).
  private static let firstState = "/sys/devices/system/cpu/cpu0/cpuidle/state0"
  /// Microseconds of latency: none, and as many as there may be (`PM_QOS_CPU_LATENCY_DEFAULT_VALUE`).
  private static let none: Int32 = 0
  private static let any: Int32 = 2_000_000_000
  /// Microseconds between looks whether it is wanted still. Each costs a timer's interrupt, which takes 40 us in a guest.
  private static let pause: UInt32 = 10_000

  /// nil: it has no effect.
  private let fields: UnsafeMutablePointer<Fields>?

  /// For this machine. It is of use where the idle driver can poll and the daemon may ask, which is root's.
  static func create() -> CPULatency {
    guard SmallFile.text(firstState + "/name") == "POLL\n", SmallFile.text(firstState + "/disable") != "1\n"
    else { return .ofNoUse }
    let request = open(device, O_WRONLY | O_CLOEXEC)
    guard request >= 0 else { return .ofNoUse }
    let bell = vs_semaphore()
    guard bell >= 0 else {
      close(request)
      return .ofNoUse
    }
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields(bell: bell, request: request))
    return CPULatency(fields: fields)
  }

  static let ofNoUse = CPULatency(fields: nil)

  var isOfUse: Bool {
    guard let fields else { return false }
    return !fields.pointee.isBroken.load(ordering: .relaxed)
  }

  /// The thread runs for as long as the daemon does.
  func start() {
    guard fields != nil else { return }
    do {
      try Thread.start("vswap-latency") { [self] in run() }
    } catch {
      giveUp()
    }
  }

  /// CPUs that are idle poll until `until`, in monotonic nanoseconds, and for up to 10 ms more.
  func hold(until: UInt64) {
    guard let fields else { return }
    fields.pointee.until.store(until, ordering: .sequentiallyConsistent)
    guard fields.pointee.isAsleep.load(ordering: .sequentiallyConsistent) else { return }
    if fields.pointee.isAsleep.exchange(false, ordering: .sequentiallyConsistent) { _ = vs_eventfd_signal(fields.pointee.bell) }
  }

  private func run() {
    guard let fields else { return }
    while vs_semaphore_take(fields.pointee.bell) == 0 {
      repeat {
        fields.pointee.isAsleep.store(false, ordering: .sequentiallyConsistent)
        guard ask(Self.none) else { return giveUp() }
        repeat { usleep(Self.pause) } while isWanted
        guard ask(Self.any) else { return giveUp() }
        fields.pointee.isAsleep.store(true, ordering: .sequentiallyConsistent)
        // Somebody who came before the last line saw it awake.
      } while isWanted
    }
  }

  /// What was asked for goes with the descriptor.
  private func giveUp() {
    fields!.pointee.isBroken.store(true, ordering: .relaxed)
    close(fields!.pointee.request)
  }

  private var isWanted: Bool { vs_monotonic_ns() < fields!.pointee.until.load(ordering: .sequentiallyConsistent) }

  private func ask(_ microseconds: Int32) -> Bool {
    withUnsafeBytes(of: microseconds) { write(fields!.pointee.request, $0.baseAddress, $0.count) } == MemoryLayout<Int32>.size
  }
}
