/// Whether it pays for a target to keep clean copies: how many of the last ones were unchanged in the end.
struct CopyYield {
  private var unchanged = 0
  private var changed = 0
  private var refused = 0

  /// Outcomes that are remembered, more or less.
  private static let memory = 512
  /// A copy costs the hash of a page, twice, and an object's memory; it saves a compression, some 20 times as much as a hash. Where fewer than a quarter of
  /// them are of use, the memory is better used otherwise.
  private static let least = 4
  /// Every so often one is kept all the same, to find out whether it is still so.
  private static let probing = 32

  /// A page that had a copy was evicted.
  mutating func note(isUnchanged: Bool) {
    if isUnchanged { unchanged += 1 } else { changed += 1 }
    if unchanged + changed >= Self.memory { (unchanged, changed) = (unchanged / 2, changed / 2) }
  }

  /// Whether the next page that comes back should keep its copy.
  mutating func shouldKeep() -> Bool {
    if unchanged * Self.least >= unchanged + changed || unchanged + changed < Self.memory / 8 { return true }
    refused += 1
    return refused % Self.probing == 0
  }
}
