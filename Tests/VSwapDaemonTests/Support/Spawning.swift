@testable import VSwapDaemon

/// Child processes have copies of all descriptors from fork to exec. So while a test needs a file to be closed when it has closed it, no other
/// test may start a program.
enum Spawning {
  private static let lock = Lock.create()

  /// Runs `body` while no other one runs: the start of a program, or what a start would disturb.
  static func alone<Result>(_ body: () throws -> Result) rethrows -> Result {
    lock.lock()
    defer { lock.unlock() }
    return try body()
  }
}
