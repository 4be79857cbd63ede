import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct HaltPollingTests {
  /// It polls as long as it is asked to, sleeps afterwards, and can be woken again.
  @Test func pollsUntilItsTimeIsOver() {
    let polling = HaltPolling.create(cpus: 2, latency: .ofNoUse)
    polling.start()
    #expect(polling.isOfUse && polling.turns(0) == 0)
    for _ in 0..<3 {
      let before = polling.turns(0)
      // Others may need the CPU for long: it is asked again until it had a turn.
      while polling.turns(0) == before {
        polling.keepBusy(except: 1, from: .max, until: vs_monotonic_ns() + 20_000_000)
        usleep(1000)
      }
      usleep(25_000)
      // It stops by itself.
      var last = polling.turns(0)
      while true {
        usleep(30_000)
        let now = polling.turns(0)
        if now == last { break }
        last = now
      }
    }
  }

  @Test func withoutCPUsItDoesNothing() {
    let polling = HaltPolling.create(cpus: 0, latency: .ofNoUse)
    polling.keepBusy(except: 0, from: 0, until: .max)
    #expect(!polling.isOfUse)
  }
}
