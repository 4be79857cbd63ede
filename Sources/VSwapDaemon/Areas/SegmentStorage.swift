/// What became of a read or write of a whole segment.
enum SegmentOutcome {
  case complete
  /// The file system, or what is below the device, has no room for it now: it may have some later.
  case noRoom
  case failed
}

/// What reads and writes whole segments, several at a time, for one thread: io_uring, or a test's fake with faults and delays.
protocol SegmentStorage: AnyObject {
  /// Buffers, of a segment's size each; an operation has one to itself until it has completed.
  var depth: Int { get }
  func buffer(_ index: Int) -> UnsafeMutableRawPointer

  func write(area: Int, segment: UInt32, buffer: Int)
  func read(area: Int, segment: UInt32, buffer: Int)
  /// Reads what can be had of a segment whose read failed, in small pieces; the rest is cleared. Waits for it.
  func readPieces(area: Int, segment: UInt32, buffer: Int)
  /// A completed operation. Without `wait`, nil if there is none yet; with it, nil
  /// if none is under way.
  func completed(wait: Bool) -> (buffer: Int, outcome: SegmentOutcome)?
  /// Areas came or went: lets go of files that are closed.
  func refresh()
  /// Gives the segment's storage back if that is wanted of the area. Best effort.
  func discard(area: Int, segment: UInt32)
}
