import CUserfault

/// A value that one thread gives and another one waits for. For the control plane: it allocates.
final class Promise<Value: Sendable>: @unchecked Sendable {
  private let lock = Lock.create()
  private let word: UnsafeMutablePointer<UInt32>
  private var value: Value?
  private var isGivenUp = false

  init() {
    word = .allocate(capacity: 1)
    word.initialize(to: 0)
  }

  deinit {
    word.deallocate()
    lock.destroy()
  }

  /// The first call counts. false: nobody waits any more, so the value is the caller's still.
  @discardableResult
  func fulfil(_ value: Value) -> Bool {
    lock.lock()
    let isWanted = !isGivenUp
    if isWanted && self.value == nil { self.value = value }
    vs_word_store(word, 1)
    lock.unlock()
    _ = vs_futex_wake(word, Int32.max)
    return isWanted
  }

  /// Whether somebody waits, or may: what nobody wants need not be begun.
  var isWanted: Bool {
    lock.lock()
    defer { lock.unlock() }
    return !isGivenUp
  }

  /// Waits no longer. The value, if it came at the last moment; else whoever gives it keeps it.
  func giveUp() -> Value? {
    lock.lock()
    defer { lock.unlock() }
    isGivenUp = value == nil
    return value
  }

  /// For what waits for the daemon's own threads and its disks only.
  func wait() -> Value {
    while true {
      if let value = wait(milliseconds: 60_000) { return value }
    }
  }

  /// nil: nothing came within `milliseconds`.
  func wait(milliseconds: Int) -> Value? {
    let deadline = vs_monotonic_ns() + UInt64(milliseconds) * 1_000_000
    while vs_word_load(word) == 0 {
      let now = vs_monotonic_ns()
      guard now < deadline else { break }
      _ = vs_futex_wait(word, 0, Int32(clamping: (deadline - now) / 1_000_000 + 1))
    }
    lock.lock()
    defer { lock.unlock() }
    return value
  }
}
