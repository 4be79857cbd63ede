/// Sequences of faults that go through memory, upwards or downwards, several at a time: how much to bring in along with a page. As the kernel's
/// readahead, a stream starts with one page and doubles as long as faults come where it ended. Where that often is not so less is brought along; it is
/// watched all the same, so what was brought does not decide what is seen.
struct ReadStreams {
  private struct Stream {
    /// Pages [first, end) are what the last fault has brought in, and what reads ahead of it have, with holes.
    var first: UInt64 = 0
    var end: UInt64 = 0
    /// What lies in swap areas below this page is being read, or was; and what is to be read.
    var readTo: UInt64 = 0
    var wantedTo: UInt64 = 0
    var pages = 1
    var isDownward = false
    var usedAt: UInt64 = 0
  }

  /// Pages that a fault brings in at most.
  static let longest = 32
  /// Pages per fault from which on a stream is worth unpacking ahead for.
  static let proven = 16
  /// Pages that are read ahead of a stream from swap areas. Reads take far longer than faults from RAM, and it takes several of them at once to keep
  /// a disk busy.
  static let distance = 512
  private static let count = 8
  /// A fault that many pages past the end still belongs to the stream: those between were resident.
  private static let reach: UInt64 = 16
  /// As many pages may be passed over without the stream being in doubt.
  private static let gap = UInt64(Strides.shortest) - 1

  private let streams: UnsafeMutablePointer<Stream>
  private var clock: UInt64 = 0
  /// The one that the last fault belonged to.
  private var current = 0
  private var rate = HitRate()

  init() {
    streams = .allocate(capacity: Self.count)
    streams.initialize(repeating: Stream(), count: Self.count)
  }

  func destroy() { streams.deallocate() }

  /// Where the stream of the last fault has got to, upwards.
  var end: UInt64 { streams[current].end }

  /// The page that was expected instead of `page`, if a fault on that passes several over in a stream. They were resident, or are not wanted: if the
  /// page expected is still out, `fault` is to be told that it is skipped.
  func expected(insteadOf page: UInt64) -> UInt64? {
    for index in 0..<Self.count {
      switch relation(of: page, to: streams[index]) {
      case .none: continue
      case .within: return nil
      case .beyond: return page - streams[index].end >= Self.gap ? streams[index].end : nil
      case .below: return streams[index].first - page > Self.gap ? streams[index].first - 1 : nil
      }
    }
    return nil
  }

  /// A fault on `page`: how many pages from there on, itself included, and how many below it to bring in. `isSkipping`: see `expected`.
  mutating func fault(_ page: UInt64, isSkipping: Bool = false) -> (ahead: Int, behind: Int) {
    clock += 1
    var oldest = 0
    for index in 0..<Self.count {
      switch relation(of: page, to: streams[index]) {
      case .none: if streams[index].usedAt < streams[oldest].usedAt { oldest = index }
      case .within: return stay(index)
      case .beyond: return extend(index, page, isDownward: false, isSkipping)
      case .below: return extend(index, page, isDownward: true, isSkipping)
      }
    }
    // Whether one of two pages would have gone on nobody knows.
    if streams[oldest].pages > 2 { rate.miss() }
    current = oldest
    streams[oldest] = Stream(first: page, end: page + 1, usedAt: clock)
    return (1, 0)
  }

  private enum Relation {
    case none, within, beyond, below
  }

  @inline(__always)
  private func relation(of page: UInt64, to stream: Stream) -> Relation {
    if page >= stream.end { return page - stream.end < Self.reach ? .beyond : .none }
    if page >= stream.first { return .within }
    return stream.first - page <= Self.reach ? .below : .none
  }

  /// A page that did not come with the others.
  private mutating func stay(_ index: Int) -> (ahead: Int, behind: Int) {
    current = index
    streams[index].usedAt = clock
    return streams[index].isDownward ? (1, 0) : (share(of: streams[index].pages), 0)
  }

  private mutating func extend(_ index: Int, _ page: UInt64, isDownward: Bool, _ isSkipping: Bool) -> (ahead: Int, behind: Int) {
    current = index
    let turns = streams[index].isDownward != isDownward
    let before = streams[index].pages
    if before > 1 && !turns {
      if isSkipping { rate.miss() } else { rate.hit() }
    }
    let pages = isSkipping ? max(1, before / 2) : turns ? 2 : min(2 * before, Self.longest)
    streams[index].first = page
    streams[index].end = page + 1
    streams[index].pages = pages
    streams[index].isDownward = isDownward
    streams[index].usedAt = clock
    return isDownward ? (1, share(of: pages) - 1) : (share(of: pages), 0)
  }

  /// With the page that is asked for itself.
  @inline(__always)
  private func share(of pages: Int) -> Int { 1 + rate.share(of: pages - 1) }

  /// That many pages from `page` on were mapped, for a fault or ahead of one.
  @inline(__always)
  mutating func brought(_ page: UInt64, _ pages: Int) {
    // Several faults may wait for their reads, so it is not always the last one.
    if page < streams[current].first || page > streams[current].end { return broughtElsewhere(page, pages) }
    streams[current].end = max(streams[current].end, page + UInt64(pages))
  }

  private mutating func broughtElsewhere(_ page: UInt64, _ pages: Int) {
    for index in 0..<Self.count
    where page >= streams[index].first && page <= streams[index].end + UInt64(Self.distance) && streams[index].end > 0 {
      streams[index].end = max(streams[index].end, page + UInt64(pages))
      return
    }
  }

  /// After a fault on `page` whose stream has come to be proven: what lies in swap areas of the next pages is wanted, `most` of them at most (below 0
  /// where a group is over its limit). Returns what is left to be read, and for `reading` of which stream.
  mutating func want(after page: UInt64, atMost most: Int) -> (stream: Int, pages: Range<UInt64>)? {
    let stream = streams[current]
    let end = page + 1 + UInt64(min(max(0, most), rate.share(of: Self.distance)))
    let start = max(page + 1, stream.readTo)
    guard !stream.isDownward, stream.pages >= 4, start + UInt64(Self.longest) <= end else { return nil }
    streams[current].wantedTo = end
    return (current, start..<end)
  }

  /// What is left to be read of a stream that a read ahead for `page` has completed of.
  func wanted(of page: UInt64) -> (stream: Int, pages: Range<UInt64>)? {
    for index in 0..<Self.count
    where page >= streams[index].first && page < streams[index].readTo && streams[index].readTo < streams[index].wantedTo {
      return (index, streams[index].readTo..<streams[index].wantedTo)
    }
    return nil
  }

  /// Reads below `page` are under way, or needless.
  mutating func reading(to page: UInt64, of stream: Int) { streams[stream].readTo = page }

  /// That many pages below it, too.
  @inline(__always)
  mutating func broughtBehind(_ page: UInt64, _ pages: Int) { streams[current].first = page - UInt64(pages) }
}
