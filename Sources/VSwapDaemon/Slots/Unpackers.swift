import CUserfault
import Synchronization

/// Worker threads that unpack what streams of faults will want next (`ReadAheadWindow`), beside the program and its pager.
///
/// A trivial handle; any thread may post.
struct Unpackers: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let lock = Lock.create()
    var first = 0
    var count = 0
    var workers = 0
  }

  private static let capacity = 64

  private let fields: UnsafeMutablePointer<Fields>
  private let queue: UnsafeMutablePointer<ReadAheadWindow?>
  /// Counts the windows in the queue.
  private let bell: Int32

  static func create() throws(KernelError) -> Unpackers {
    let bell = vs_semaphore()
    guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
    let unpackers = Unpackers(fields: .allocate(capacity: 1), queue: .allocate(capacity: capacity), bell: bell)
    unpackers.fields.initialize(to: Fields())
    unpackers.queue.initialize(repeating: nil, count: capacity)
    return unpackers
  }

  /// Before the first post. They run for as long as the daemon does. None: nothing is read ahead beside the program.
  func start(workers: Int) throws(KernelError) {
    fields.pointee.workers = workers
    for number in 0..<workers {
      try Thread.start("vswap-ahead-\(number)") { [self] in run() }
    }
  }

  /// false: there are no workers, or too many windows wait.
  func post(_ window: ReadAheadWindow) -> Bool {
    fields.pointee.lock.lock()
    let hasRoom = fields.pointee.workers > 0 && fields.pointee.count < Self.capacity
    if hasRoom {
      queue[(fields.pointee.first + fields.pointee.count) % Self.capacity] = window
      fields.pointee.count += 1
    }
    fields.pointee.lock.unlock()
    if hasRoom { _ = vs_eventfd_signal(bell) }
    return hasRoom
  }

  private func run() {
    let codec = Codec.create()
    while true {
      guard vs_semaphore_take(bell) == 0, let window = next() else { continue }
      window.work(codec: codec)
    }
  }

  private func next() -> ReadAheadWindow? {
    fields.pointee.lock.lock()
    defer { fields.pointee.lock.unlock() }
    guard fields.pointee.count > 0 else { return nil }
    let window = queue[fields.pointee.first]
    fields.pointee.first = (fields.pointee.first + 1) % Self.capacity
    fields.pointee.count -= 1
    return window
  }
}
