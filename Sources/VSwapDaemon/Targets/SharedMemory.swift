import CUserfault
import Glibc
import Synchronization

/// How many pages of a group's processes are counted twice because they share them since a fork. Reading that takes the locks of the processes, for as
/// long as it takes to walk their memory; so it is a thread of its own that does it, while the keeper goes by the latest figure.
final class SharedMemory: @unchecked Sendable {
  /// A group's figure.
  final class Figure: Sendable {
    fileprivate let value = Atomic<Int>(0)
    fileprivate let isAsked = Atomic<Bool>(false)

    /// Pages that are counted too often.
    var pages: Int {
      get { value.load(ordering: .relaxed) }
      set { value.store(newValue, ordering: .relaxed) }
    }
  }

  struct Process: Sendable {
    let processID: Int32
    /// Keeps `statm` open.
    let owner: any Sendable & AnyObject
    let statm: Int32
  }

  private let lock = Lock.create()
  private var questions: [(figure: Figure, processes: [Process])] = []
  private let bell = vs_semaphore()

  func start() throws(KernelError) {
    guard bell >= 0 else { throw KernelError(call: "eventfd", code: -bell) }
    try Thread.start("vswap-shared") { [self] in
      while vs_semaphore_take(bell) == 0 { answer() }
    }
  }

  /// Has the figure renewed, unless that is under way.
  func renew(_ figure: Figure, _ processes: [Process]) {
    guard !figure.isAsked.exchange(true, ordering: .relaxed) else { return }
    lock.lock()
    questions.append((figure, processes))
    lock.unlock()
    _ = vs_eventfd_signal(bell)
  }

  private func answer() {
    lock.lock()
    let (figure, processes) = questions.removeFirst()
    lock.unlock()
    figure.pages = processes.reduce(0) { $0 + Self.surplus($1) }
    figure.isAsked.store(false, ordering: .relaxed)
  }

  private static func surplus(_ process: Process) -> Int {
    guard let fair = ProportionalSize.anonymousPages(of: process.processID) else { return 0 }
    return max(0, Int(vs_resident_pages(process.statm)) - fair)
  }
}
