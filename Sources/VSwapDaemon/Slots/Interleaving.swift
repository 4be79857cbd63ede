#if DEBUG
  import Glibc
  import Synchronization
#endif

/// Places between two steps of a lock-free operation, where another thread may come in.
///
/// On a machine with few processors it hardly ever does, so a stress test would prove little. In debug builds
/// a test can make threads pause at these points now and then; in release builds there is nothing here.
enum Interleaving {
  #if DEBUG
    /// One in so many passes pauses, mostly for up to 100 us; 0 (the default) is none. For tests.
    static let rarity = Atomic<Int>(0)
  #endif

  /// Marks such a place.
  @inline(__always)
  static func point() {
    #if DEBUG
      let rarity = rarity.load(ordering: .relaxed)
      guard rarity > 0 else { return }
      var now = timespec()
      clock_gettime(CLOCK_MONOTONIC, &now)
      // The low bits are as good as random.
      guard (now.tv_nsec >> 3) % rarity == 0 else { return }
      switch now.tv_nsec & 7 {
      case 0...3: sched_yield()
      case 4...6: usleep(UInt32(now.tv_nsec % 100))
      default: usleep(2000)
      }
    #endif
  }
}
