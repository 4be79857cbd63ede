import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct CPULatencyTests {
  private static let isOfUse = CPULatency.create().isOfUse && latency() > 0

  /// What all requests on this machine come to, in microseconds.
  private static func latency() -> Int32 {
    let device = open("/dev/cpu_dma_latency", O_RDONLY | O_CLOEXEC)
    defer { close(device) }
    var value: Int32 = -1
    #expect(read(device, &value, 4) == 4)
    return value
  }

  /// CPUs poll while it is held, may halt again after that, and it can be held once more.
  @Test(.enabled(if: isOfUse, "CPUs that are idle cannot poll here, or do so already, or it takes root to have them do so"))
  func idleCPUsPollWhileItIsHeld() {
    let latency = CPULatency.create()
    latency.start()
    #expect(Self.latency() > 0)
    for _ in 0..<3 {
      latency.hold(until: .max)
      while latency.isOfUse && Self.latency() != 0 { usleep(1000) }
      usleep(30_000)
      #expect(Self.latency() == 0)
      latency.hold(until: 0)
      while latency.isOfUse && Self.latency() == 0 { usleep(1000) }
      #expect(latency.isOfUse)
    }
  }

  @Test func withoutTheRightItDoesNothing() {
    let latency = CPULatency.ofNoUse
    latency.start()
    latency.hold(until: .max)
    #expect(!latency.isOfUse)
  }
}
