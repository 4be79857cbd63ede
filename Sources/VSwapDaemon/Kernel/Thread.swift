import CUserfault
import Glibc

/// A detached thread with all signals blocked.
enum Thread {
  private final class Body {
    let run: () -> Void
    init(_ run: @escaping () -> Void) { self.run = run }
  }

  /// Starts `body`. `name` is cut to 15 characters; the stack has 512 KiB, of which only what is touched takes RAM.
  static func start(_ name: String, _ body: @escaping @Sendable () -> Void) throws(KernelError) {
    let argument = Unmanaged.passRetained(Body(body))
    let status = vs_thread_start(
      String(name.prefix(15)), 512 * 1024,
      { argument in
        Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
        // The next thread may get this stack much later.
        vs_return_stack()
        return nil
      }, argument.toOpaque())
    if status != 0 {
      argument.release()
      throw KernelError(call: "pthread_create", code: -status)
    }
  }
}
