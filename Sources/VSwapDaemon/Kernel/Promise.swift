import CUserfault

/// A value that one thread gives and another one waits for. For the control plane: it allocates.
final class Promise<Value: Sendable>: @unchecked Sendable {
  private let lock = Lock.create()
  private let word: UnsafeMutablePointer<UInt32>
  private var value: Value?

  init() {
    word = .allocate(capacity: 1)
    word.initialize(to: 0)
  }

  deinit {
    word.deallocate()
    lock.destroy()
  }

  /// The first call counts.
  func fulfil(_ value: Value) {
    lock.lock()
    if self.value == nil { self.value = value }
    vs_word_store(word, 1)
    lock.unlock()
    _ = vs_futex_wake(word, Int32.max)
  }

  /// For what must not be given up: whoever was asked answers, or refuses when it ends.
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
