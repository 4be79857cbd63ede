/// "1 page", "2 pages".
func pageCount(_ pages: Int) -> String {
  pages == 1 ? "1 page" : "\(pages) pages"
}

/// The whole number that `value` is cut to; the nearest there is where it is beyond all of them, 0 for no number. What
/// answers on a socket may say anything.
func whole(_ value: Double) -> Int {
  guard !value.isNaN else { return 0 }
  return Int(exactly: value.rounded(.towardZero)) ?? (value < 0 ? .min : .max)
}

/// How much a count has grown; of more than can be told, the most that can.
func growth(from before: Int, to after: Int) -> Int {
  let difference = after.subtractingReportingOverflow(before)
  return difference.overflow ? (after < before ? .min : .max) : difference.partialValue
}
