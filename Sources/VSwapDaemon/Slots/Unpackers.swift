import CUserfault
import Synchronization

/// Worker threads that unpack what streams of faults will want next (`ReadAheadWindow`), beside the program and its pager.
///
/// A trivial handle; any thread may post. The workers share the CPUs out among themselves, and a window goes to one that does not run where
/// its pager does: a scheduler that saves wake-ups of idle CPUs puts it there otherwise, where it would only keep the program waiting.
struct Unpackers: @unchecked Sendable {
  /// Of one worker. Nothing in it changes: what does is behind a pointer, under the lock.
  private struct Queue {
    let lock = Lock.create()
    /// Counts the windows in the queue.
    let bell: Int32
    let state: UnsafeMutablePointer<State>
  }

  private struct State {
    let windows: UnsafeMutablePointer<ReadAheadWindow?>
    var first = 0
    var count = 0
  }

  private static let capacity = 64

  /// One per worker.
  private let queues: UnsafeMutablePointer<Queue>
  private let workers: Int

  /// With fewer than two workers nothing is read ahead beside the program.
  static func create(workers: Int) throws(KernelError) -> Unpackers {
    let queues = UnsafeMutablePointer<Queue>.allocate(capacity: workers)
    for index in 0..<workers {
      let bell = vs_semaphore()
      guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
      let windows = UnsafeMutablePointer<ReadAheadWindow?>.allocate(capacity: capacity)
      windows.initialize(repeating: nil, count: capacity)
      let state = UnsafeMutablePointer<State>.allocate(capacity: 1)
      state.initialize(to: State(windows: windows))
      (queues + index).initialize(to: Queue(bell: bell, state: state))
    }
    return Unpackers(queues: queues, workers: workers)
  }

  /// They run for as long as the daemon does.
  func start() throws(KernelError) {
    guard workers > 1 else { return }
    for number in 0..<workers {
      try Thread.start("vswap-ahead-\(number)") { [self] in run(number) }
    }
  }

  /// false: there are no workers, or too many windows wait.
  func post(_ window: ReadAheadWindow) -> Bool {
    guard workers > 1 else { return false }
    let queue = queues[(max(0, Int(vs_current_cpu())) + 1) % workers]
    let state = queue.state
    queue.lock.lock()
    let hasRoom = state.pointee.count < Self.capacity
    if hasRoom {
      state.pointee.windows[(state.pointee.first + state.pointee.count) % Self.capacity] = window
      state.pointee.count += 1
    }
    queue.lock.unlock()
    if hasRoom { _ = vs_eventfd_signal(queue.bell) }
    return hasRoom
  }

  private func run(_ number: Int) {
    // Where it is not allowed the worker runs wherever it likes.
    _ = vs_set_cpu_share(Int32(number), Int32(workers))
    // What is not ready in time the pager does itself, while the program waits.
    _ = vs_favour_thread(0)
    let codec = Codec.create()
    while true {
      guard vs_semaphore_take(queues[number].bell) == 0, let window = next(queues[number]) else { continue }
      window.work(codec: codec)
    }
  }

  private func next(_ queue: Queue) -> ReadAheadWindow? {
    let state = queue.state
    queue.lock.lock()
    defer { queue.lock.unlock() }
    guard state.pointee.count > 0 else { return nil }
    let window = state.pointee.windows[state.pointee.first]
    state.pointee.first = (state.pointee.first + 1) % Self.capacity
    state.pointee.count -= 1
    return window
  }
}
