/// Sequences of faults that go through memory, upwards or downwards, several at a time: how much to bring in along with a page. As the kernel's
/// readahead, a stream starts with one page and doubles as long as faults come where it ended.
struct ReadStreams {
  private struct Stream {
    /// Pages [first, end) are what the last fault has brought in.
    var first: UInt64 = 0
    var end: UInt64 = 0
    var pages = 1
    var isDownward = false
    var usedAt: UInt64 = 0
  }

  /// Pages that a fault brings in at most.
  static let longest = 32
  /// Pages per fault from which on a stream is worth unpacking ahead for.
  static let proven = 16
  private static let count = 8
  /// A fault that many pages past the end still belongs to the stream: those between were resident.
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

  /// Where the stream of the last fault has got to, upwards.
  var end: UInt64 { streams[current].end }

  /// A fault on `page`: how many pages from there on, itself included, and how many below it to bring in.
  mutating func fault(_ page: UInt64) -> (ahead: Int, behind: Int) {
    clock += 1
    var oldest = 0
    for index in 0..<Self.count {
      if page >= streams[index].end && page - streams[index].end < Self.reach { return extend(index, page, isDownward: false) }
      if page < streams[index].first && streams[index].first - page <= Self.reach { return extend(index, page, isDownward: true) }
      if streams[index].usedAt < streams[oldest].usedAt { oldest = index }
    }
    current = oldest
    streams[oldest] = Stream(first: page, end: page + 1, usedAt: clock)
    return (1, 0)
  }

  private mutating func extend(_ index: Int, _ page: UInt64, isDownward: Bool) -> (ahead: Int, behind: Int) {
    current = index
    let turns = streams[index].isDownward != isDownward
    let pages = turns ? 2 : min(2 * streams[index].pages, Self.longest)
    streams[index] = Stream(first: page, end: page + 1, pages: pages, isDownward: isDownward, usedAt: clock)
    return isDownward ? (1, pages - 1) : (pages, 0)
  }

  /// That many pages came with the last fault.
  @inline(__always)
  mutating func brought(_ page: UInt64, _ pages: Int) { streams[current].end = page + UInt64(pages) }

  /// That many pages below it, too.
  @inline(__always)
  mutating func broughtBehind(_ page: UInt64, _ pages: Int) { streams[current].first = page - UInt64(pages) }
}
