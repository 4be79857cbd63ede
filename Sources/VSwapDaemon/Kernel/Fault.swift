/// A missing page that a thread waits for.
struct Fault {
  /// Byte address of the page.
  var address: UInt64
  /// 0: nobody waits, the page is brought back by a restore. `ahead`: nobody waits, and nothing need come of it.
  var thread: Int32
  var write: Bool

  /// Instead of a thread: the read of a page that a stream of faults will want.
  static let ahead: Int32 = -1
}
