/// A missing page that a thread waits for.
struct Fault {
  /// Byte address of the page.
  var address: UInt64
  /// 0: nobody waits, the page is brought back unasked.
  var thread: Int32
  var write: Bool
}
