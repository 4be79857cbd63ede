/// How many predictions of one kind have come true lately, and how much they may bring along.
///
/// A mean in which each outcome counts for an eighth and those before it for the rest: an exponentially decayed one, as the kernel keeps its load
/// average. It begins with trust. Where half of the predictions or more come true all may be brought that is wanted, below that in
/// proportion: unpacking and mapping a page that nobody waits for costs about a quarter of a fault, and takes room.
struct HitRate {
  private var value = Self.one

  private static let one = 1 << 16
  private static let weight = 8

  /// From 0 to 1.
  var current: Double { Double(value) / Double(Self.one) }

  @inline(__always)
  mutating func hit() { value += (Self.one - value) / Self.weight }

  @inline(__always)
  mutating func miss() { value -= value / Self.weight }

  /// How many of `most` pages may come along, from 0 to `most`. What a prediction comes to is seen whether it brings anything or not.
  func share(of most: Int) -> Int { 2 * value >= Self.one ? most : most * 2 * value / Self.one }
}
