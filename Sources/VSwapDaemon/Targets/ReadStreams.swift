/// Sequences of faults that go upwards through memory, several at a time: how far to read ahead. As the kernel's readahead, a stream starts
/// with one page and doubles, up to 16, as long as faults come where it ended.
struct ReadStreams {
  private struct Stream {
    /// Page after the last one that it brought in.
    var end: UInt64 = 0
    var pages: Int = 1
    var usedAt: UInt64 = 0
  }

  /// Pages that a fault brings in at most.
  static let longest = 16
  private static let count = 8
  /// A fault that many pages behind the end still belongs to the stream: those between were resident.
  private static let reach: UInt64 = 16

  private let streams: UnsafeMutablePointer<Stream>
  private var clock: UInt64 = 0
  /// The one that the last fault belonged to.
  private var current = 0

  init() {
    streams = .allocate(capacity: Self.count)
    streams.initialize(repeating: Stream(), count: Self.count)
  }

  func destroy() { streams.deallocate() }

  /// A fault on `page`: how many pages from there on to bring in.
  mutating func fault(_ page: UInt64) -> Int {
    clock += 1
    var oldest = 0
    for index in 0..<Self.count {
      if page >= streams[index].end && page - streams[index].end < Self.reach {
        current = index
        streams[index].pages = min(2 * streams[index].pages, Self.longest)
        streams[index].usedAt = clock
        streams[index].end = page + 1
        return streams[index].pages
      }
      if streams[index].usedAt < streams[oldest].usedAt { oldest = index }
    }
    current = oldest
    streams[oldest] = Stream(end: page + 1, pages: 1, usedAt: clock)
    return 1
  }

  /// That many pages came with the last fault.
  @inline(__always)
  mutating func brought(_ page: UInt64, _ pages: Int) { streams[current].end = page + UInt64(pages) }
}
