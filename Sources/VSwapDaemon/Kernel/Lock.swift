import CUserfault
import Glibc

/// A mutual exclusion lock: a trivial handle around a heap-allocated `pthread_mutex_t`.
///
/// The standard library's `Mutex` is fair, and slow under contention, on Linux in Swift 6.3; it also cannot
/// live in a trivial struct. Not recursive, unfair, no poisoning. Any thread may call; `unlock` only the
/// thread that locked.
struct Lock: @unchecked Sendable {
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>

  /// Allocates an unlocked lock. The calls cannot fail for a default mutex, short of having no memory.
  static func create() -> Lock {
    let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    let status = pthread_mutex_init(mutex, nil)
    precondition(status == 0, "pthread_mutex_init failed")
    return Lock(mutex: mutex)
  }

  /// Frees the lock, which nobody may hold or use any more.
  func destroy() {
    let status = pthread_mutex_destroy(mutex)
    precondition(status == 0, "destroyed a lock that is held")
    mutex.deallocate()
  }

  /// Tries before a thread goes to sleep, some microseconds: most locks are held for less. Whoever sleeps has to be woken, and a lock that was let go of
  /// belongs to nobody until the one thread that was woken gets a CPU; the pager waited 16 ms behind a worker for that.
  private static let attempts = 64

  /// Blocks until the lock is this thread's.
  func lock() {
    for _ in 0..<Self.attempts {
      if tryLock() { return }
      vs_pause()
    }
    let status = pthread_mutex_lock(mutex)
    precondition(status == 0, "pthread_mutex_lock failed")
  }

  /// Hands the lock back.
  func unlock() {
    let status = pthread_mutex_unlock(mutex)
    precondition(status == 0, "pthread_mutex_unlock failed")
  }

  /// Takes the lock if nobody holds it; returns whether it did.
  func tryLock() -> Bool {
    pthread_mutex_trylock(mutex) == 0
  }

  /// Waits at most `timeoutMilliseconds` (0 or more; monotonic clock); returns whether the lock was taken.
  func lock(timeoutMilliseconds: Int) -> Bool {
    assert(timeoutMilliseconds >= 0)
    for _ in 0..<Self.attempts {
      if tryLock() { return true }
      vs_pause()
    }
    var deadline = timespec()
    clock_gettime(CLOCK_MONOTONIC, &deadline)
    deadline.tv_sec += timeoutMilliseconds / 1000
    deadline.tv_nsec += timeoutMilliseconds % 1000 * 1_000_000
    if deadline.tv_nsec >= 1_000_000_000 {
      deadline.tv_sec += 1
      deadline.tv_nsec -= 1_000_000_000
    }
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &deadline) == 0
  }
}
