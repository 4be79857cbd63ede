import Dispatch
import Glibc

/// Descriptors that leaving takes, for a daemon that has none left by then: clients may have taken all of them.
///
/// libdispatch ends the process where it cannot have one, and the control server needs that library to stop. So it is made to open
/// what it keeps right at the start; and what it and others open for a moment comes out of the reserve. One thread.
struct ExitReserve {
  private let descriptors: [Int32]

  private static let count = 16

  /// With fewer where there are not so many.
  init() {
    let done = DispatchSemaphore(value: 0)
    DispatchQueue.global().async { done.signal() }
    done.wait()
    descriptors = (0..<Self.count).map { _ in open("/", O_PATH | O_CLOEXEC) }.filter { $0 >= 0 }
  }

  /// Nobody may accept connections any more, or these would be theirs.
  func release() {
    for descriptor in descriptors { close(descriptor) }
  }
}
