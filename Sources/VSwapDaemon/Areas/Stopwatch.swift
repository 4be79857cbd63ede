import CUserfault
import Glibc

/// Time since it was made: by the clock, and what this process has used of CPUs. Nanoseconds.
struct Stopwatch {
  private let wallStart = vs_monotonic_ns()
  private let usage = Self.usage()

  private static func usage() -> (user: UInt64, system: UInt64) {
    var usage = rusage()
    // Fails only with a wrong argument.
    guard getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage) == 0 else { return (0, 0) }
    return (nanoseconds(usage.ru_utime), nanoseconds(usage.ru_stime))
  }

  private static func nanoseconds(_ time: timeval) -> UInt64 {
    UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_usec) * 1000
  }

  var wall: UInt64 { vs_monotonic_ns() - wallStart }
  var user: UInt64 { Self.usage().user - usage.user }
  var system: UInt64 { Self.usage().system - usage.system }
}
