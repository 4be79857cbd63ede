/// How much comes along with a page whose neighbours are in demand, by whether that has paid.
///
/// What is asked for of the 16 pages around is left out in part, so if the others are wanted there will be faults on these. Some such places are
/// watched. One that no fault has come to in four times as many as it would have taken on average if every page that is out were as likely to be
/// asked for had others that were not wanted.
///
/// A value with one owner, for its pager's thread alone.
struct Surroundings {
  private struct Watched {
    /// Number of the aligned 16 pages; 0: none.
    var place: UInt64 = 0
    /// Fault at which it was not wanted after all.
    var until: UInt64 = 0
  }

  /// Pages that are brought in along with one at most, itself included.
  static let most = 8
  private static let count = 8

  private let watched: UnsafeMutablePointer<Watched>
  private var clock: UInt64 = 0
  private var rate = HitRate()

  init() {
    watched = .allocate(capacity: Self.count)
    watched.initialize(repeating: Watched(), count: Self.count)
  }

  func destroy() { watched.deallocate() }

  /// A fault on `page` was served, whatever came along with it. Once for each.
  mutating func fault(_ page: UInt64) {
    clock += 1
    for index in 0..<Self.count where watched[index].place == page / 16 && page >= 16 {
      rate.hit()
      watched[index].place = 0
    }
  }

  /// Pages to bring in along with one in demand, itself included: 1 ... `most`.
  mutating func pages() -> Int { 1 + rate.shareOrProbe(of: Self.most - 1) }

  /// Others were brought along with `page`. Of the 16 pages around `left` are still out, of all `swapped`.
  mutating func brought(around page: UInt64, left: Int, swapped: Int) {
    guard left > 0 else { return }
    for index in 0..<Self.count where watched[index].place == 0 || clock >= watched[index].until {
      if watched[index].place != 0 { rate.miss() }
      watched[index] = Watched(place: page / 16, until: clock + UInt64(4 * swapped / left))
      return
    }
  }
}
