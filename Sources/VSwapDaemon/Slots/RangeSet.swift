/// A sorted set of half-open ranges [start, end) of pages, none empty, no two overlapping.
///
/// Ranges that overlap are united. Ranges that merely touch are united only if the set was made so: two
/// VMAs side by side remain two. A trivial struct over a buffer it grows by hand, to be kept in one place (a
/// copy is stale after the next change) and freed with `destroy`. Not thread-safe. Look-ups are binary
/// searches; changes move the tail of the buffer.
struct RangeSet: @unchecked Sendable {
  private let coalesceAdjacent: Bool
  private var items: UnsafeMutablePointer<(start: UInt64, end: UInt64)>
  private var capacity: Int
  /// Ranges.
  private(set) var count = 0
  /// Pages in all ranges.
  private(set) var totalPages: UInt64 = 0

  /// An empty set; `coalesceAdjacent` says whether [1,3) and [3,5) become [1,5).
  init(coalesceAdjacent: Bool) {
    self.coalesceAdjacent = coalesceAdjacent
    capacity = 16
    items = .allocate(capacity: capacity)
  }

  /// Frees the buffer; the set may not be used any more.
  func destroy() {
    items.deallocate()
  }

  // MARK: Look-up

  /// The range at `index`, 0 ..< count, in ascending order.
  subscript(index: Int) -> (start: UInt64, end: UInt64) {
    assert((0..<count).contains(index))
    return items[index]
  }

  /// Whether a range contains the page.
  func contains(_ page: UInt64) -> Bool {
    range(containing: page) != nil
  }

  /// The whole range that contains the page.
  func range(containing page: UInt64) -> (start: UInt64, end: UInt64)? {
    let index = firstEnding(after: page)
    return index < count && items[index].start <= page ? items[index] : nil
  }

  /// The first part of [low, end) that is in the set, within one range.
  func firstIntersection(from low: UInt64, below end: UInt64) -> (start: UInt64, end: UInt64)? {
    guard low < end else { return nil }
    let index = firstEnding(after: low)
    guard index < count, items[index].start < end else { return nil }
    return (max(low, items[index].start), min(end, items[index].end))
  }

  /// Index of the first range whose end is above `page`; `count` if there is none.
  private func firstEnding(after page: UInt64) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if items[middle].end > page { high = middle } else { low = middle + 1 }
    }
    return low
  }

  // MARK: Change

  /// Adds [low, end), united with every range it overlaps (and, if so chosen, touches).
  mutating func insert(from low: UInt64, below end: UInt64) {
    guard low < end else { return }
    var new = (start: low, end: end)
    // Ranges [first, last) go into the new one.
    let first = coalesceAdjacent && low > 0 ? firstEnding(after: low - 1) : firstEnding(after: low)
    var last = first
    while last < count, items[last].start < end || (coalesceAdjacent && items[last].start == end) {
      new = (min(new.start, items[last].start), max(new.end, items[last].end))
      totalPages -= items[last].end - items[last].start
      last += 1
    }
    replace(first, last, by: 1)
    items[first] = new
    totalPages += new.end - new.start
  }

  /// Takes [low, end) out; a range that contains it is split.
  mutating func remove(from low: UInt64, below end: UInt64) {
    guard low < end else { return }
    let first = firstEnding(after: low)
    var last = first
    while last < count, items[last].start < end {
      totalPages -= min(end, items[last].end) - max(low, items[last].start)
      last += 1
    }
    guard first < last else { return }
    let head = (start: items[first].start, end: low)
    let tail = (start: end, end: items[last - 1].end)
    let hasHead = head.start < head.end
    let hasTail = tail.start < tail.end
    replace(first, last, by: (hasHead ? 1 : 0) + (hasTail ? 1 : 0))
    if hasHead { items[first] = head }
    if hasTail { items[first + (hasHead ? 1 : 0)] = tail }
  }

  /// Moves what is in [from, from + count) to [to, to + count), whose former content goes. Borders between
  /// ranges move along. The two may overlap.
  mutating func move(from: UInt64, to: UInt64, count pages: UInt64) {
    guard from != to, pages > 0 else { return }
    var moved = RangeSet(coalesceAdjacent: coalesceAdjacent)
    defer { moved.destroy() }
    var cursor = from
    while let part = firstIntersection(from: cursor, below: from + pages) {
      moved.insert(from: part.start - from + to, below: part.end - from + to)
      cursor = part.end
    }
    remove(from: from, below: from + pages)
    remove(from: to, below: to + pages)
    for index in 0..<moved.count {
      insert(from: moved[index].start, below: moved[index].end)
    }
  }

  /// Empties the set; keeps the buffer.
  mutating func removeAll() {
    count = 0
    totalPages = 0
  }

  /// Makes room for `new` ranges in place of the ones at [first, last).
  private mutating func replace(_ first: Int, _ last: Int, by new: Int) {
    let newCount = count - (last - first) + new
    if newCount > capacity { grow(to: newCount) }
    (items + first + new).update(from: items + last, count: count - last)
    count = newCount
  }

  private mutating func grow(to needed: Int) {
    while capacity < needed { capacity *= 2 }
    let larger = UnsafeMutablePointer<(start: UInt64, end: UInt64)>.allocate(capacity: capacity)
    larger.initialize(from: items, count: count)
    items.deallocate()
    items = larger
  }
}
