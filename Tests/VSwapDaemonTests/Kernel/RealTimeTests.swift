import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

/// What `body` says on a thread of its own, since it changes how that is scheduled.
private func onThread<Value: Sendable>(_ body: @escaping @Sendable () -> Value) throws -> Value {
  let answer = Promise<Value>()
  try Thread.start("test-scheduling") { answer.fulfil(body()) }
  return answer.wait()
}

private struct Scheduling: Equatable {
  var policy: Int32
  var nice: Int32

  /// Of the calling thread.
  static func current() -> Scheduling {
    Scheduling(policy: sched_getscheduler(0), nice: getpriority(PRIO_PROCESS, id_t(gettid())))
  }
}

@Suite struct RealTimeTests {
  private static let mayAsk = (try? onThread { vs_make_real_time(0) == 0 && vs_favour_thread(0) == 0 }) ?? false

  /// A pager that was hurried is what it was before.
  @Test(.enabled(if: mayAsk, "it takes CAP_SYS_NICE"))
  func afterwardsTheThreadIsWhatItWas() throws {
    let seen = try onThread {
      var seen: [Scheduling] = []
      _ = vs_favour_thread(0)
      seen.append(.current())
      let began = vs_make_real_time(gettid())
      seen.append(.current())
      let ended = vs_end_real_time()
      seen.append(.current())
      return (seen, began, ended)
    }
    #expect(seen.1 == 0 && seen.2 == 0)
    #expect(seen.0[0] == Scheduling(policy: SCHED_OTHER, nice: -19))
    #expect(seen.0[1].policy == SCHED_RR)
    #expect(seen.0[2] == seen.0[0])
  }
}
