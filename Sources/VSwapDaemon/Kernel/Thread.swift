import CUserfault
import Glibc

/// A detached thread with all signals blocked.
enum Thread {
  private final class Body {
    let name: String
    let run: () -> Void

    init(_ name: String, _ run: @escaping () -> Void) {
      self.name = name
      self.run = run
    }
  }

  /// Starts `body`. `name` is cut to 15 characters; the stack has 512 KiB, of which only what is touched takes RAM.
  static func start(_ name: String, _ body: @escaping @Sendable () -> Void) throws(KernelError) {
    let argument = Unmanaged.passRetained(Body(String(name.prefix(15)), body))
    let status = vs_thread_start(
      512 * 1024,
      { argument in
        let body = Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue()
        vs_name_thread(body.name)
        body.run()
        // The next thread may get this stack much later.
        vs_return_stack()
        return nil
      }, argument.toOpaque())
    if status != 0 {
      argument.release()
      throw KernelError(call: "pthread_create", code: -status)
    }
  }

  /// CPU time of the calling thread.
  static var cpuNanoseconds: UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
