/// How many predictions of one kind have come true lately, and how much they may bring along.
///
/// A mean in which each outcome counts for an eighth and those before it for the rest: an exponentially decayed one, as the kernel keeps its load
/// average. It begins with trust. Where half of the predictions or more come true all may be brought that is wanted, below that in
/// proportion: unpacking and mapping a page that nobody waits for costs about a quarter of a fault, and takes room.
struct HitRate {
  private var value = Self.one
  private var refusals = 0

  private static let one = 1 << 16
  private static let weight = 8
  /// Of so many predictions that may bring nothing one brings a little all the same.
  private static let refusalsPerProbe = 16

  /// From 0 to 1.
  var current: Double { Double(value) / Double(Self.one) }

  @inline(__always)
  mutating func hit() { value += (Self.one - value) / Self.weight }

  @inline(__always)
  mutating func miss() { value -= value / Self.weight }

  /// How many of `most` pages may come along, from 0 to `most`. For predictions whose outcome is seen whether they bring anything or not.
  func share(of most: Int) -> Int { 2 * value >= Self.one ? most : most * 2 * value / Self.one }

  /// The same for predictions that are only seen to come true if they bring something: where nothing may come along, a quarter of `most`, 1 page
  /// at least, does so now and then.
  mutating func shareOrProbe(of most: Int) -> Int {
    let pages = share(of: most)
    if pages > 0 { return pages }
    refusals += 1
    guard refusals >= Self.refusalsPerProbe else { return 0 }
    refusals = 0
    return max(1, most / 4)
  }
}
