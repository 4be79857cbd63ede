import CUserfault
import Synchronization

/// Worker threads that unpack what streams of faults will want next, beside the program and its pager.
///
/// A trivial handle; any thread may post. The workers share the CPUs out among themselves, and work goes to one that does not run where
/// its pager does: a scheduler that saves wake-ups of idle CPUs puts it there otherwise, where it would only keep the program waiting.
struct Unpackers: @unchecked Sendable {
  enum Work {
    /// From RAM, for the pager to map.
    case window(ReadAheadWindow)
    /// From a swap area, to be mapped. The pager lives until it has taken it back.
    case haul(Haul, Unmanaged<Pager>)
  }

  /// Of one worker. Nothing in it changes: what does is behind a pointer, under the lock.
  private struct Queue {
    let lock = Lock.create()
    /// Counts the work in the queue.
    let bell: Int32
    let state: UnsafeMutablePointer<State>
  }

  private struct State {
    let work: UnsafeMutablePointer<Work?>
    var first = 0
    var count = 0
  }

  /// The most there is room for in the queue of a worker.
  static let capacity = 64

  /// One per worker.
  private let queues: UnsafeMutablePointer<Queue>
  private let workers: Int
  private let layer: SlotLayer

  /// With fewer than two workers nothing is read ahead beside the program.
  static func create(workers: Int, layer: SlotLayer) throws(KernelError) -> Unpackers {
    let queues = UnsafeMutablePointer<Queue>.allocate(capacity: workers)
    for index in 0..<workers {
      let bell = vs_semaphore()
      guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
      let work = UnsafeMutablePointer<Work?>.allocate(capacity: capacity)
      work.initialize(repeating: nil, count: capacity)
      let state = UnsafeMutablePointer<State>.allocate(capacity: 1)
      state.initialize(to: State(work: work))
      (queues + index).initialize(to: Queue(bell: bell, state: state))
    }
    return Unpackers(queues: queues, workers: workers, layer: layer)
  }

  /// They run for as long as the daemon does.
  func start() throws(KernelError) {
    guard workers > 1 else { return }
    for number in 0..<workers {
      let codec = try Codec.create()
      try Thread.start("vswap-ahead-\(number)") { [self] in run(number, codec) }
    }
  }

  /// Gives the work to a worker on another CPU in whose queue less than `most` (1 ... `capacity`) waits. false: there is none.
  func post(_ work: Work, most: Int) -> Bool {
    let here = max(0, Int(vs_current_cpu()))
    for distance in 1..<max(1, workers) where post(work, most, to: queues[(here + distance) % workers]) { return true }
    return false
  }

  private func post(_ work: Work, _ most: Int, to queue: Queue) -> Bool {
    let state = queue.state
    queue.lock.lock()
    let hasRoom = state.pointee.count < most
    if hasRoom {
      state.pointee.work[(state.pointee.first + state.pointee.count) % Self.capacity] = work
      state.pointee.count += 1
    }
    queue.lock.unlock()
    if hasRoom { _ = vs_eventfd_signal(queue.bell) }
    return hasRoom
  }

  private func run(_ number: Int, _ codec: Codec) {
    // Where it is not allowed the worker runs wherever it likes.
    _ = vs_set_cpu_share(Int32(number), Int32(workers))
    // What is not ready in time the pager does itself, while the program waits.
    _ = vs_favour_thread(0)
    let batch = PageBatch()
    while true {
      guard vs_semaphore_take(queues[number].bell) == 0, let work = next(queues[number]) else { continue }
      switch work {
      case .window(let window): window.work(codec: codec)
      case .haul(let haul, let pager):
        pager._withUnsafeGuaranteedRef { haul.workPosted(for: $0, layer: layer, codec: codec, batch: batch) }
      }
    }
  }

  private func next(_ queue: Queue) -> Work? {
    let state = queue.state
    queue.lock.lock()
    defer { queue.lock.unlock() }
    guard state.pointee.count > 0 else { return nil }
    let work = state.pointee.work[state.pointee.first]
    state.pointee.first = (state.pointee.first + 1) % Self.capacity
    state.pointee.count -= 1
    return work
  }
}
