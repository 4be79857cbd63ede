import Testing

@testable import VSwapDaemon

@Suite struct RangeSetTests {
  @Test func adjacentRangesUniteOnlyWhereWanted() {
    for coalesce in [true, false] {
      var set = RangeSet(coalesceAdjacent: coalesce)
      defer { set.destroy() }
      set.insert(from: 10, below: 20)
      set.insert(from: 20, below: 30)
      set.insert(from: 0, below: 10)
      #expect(set.count == (coalesce ? 1 : 3) && set.totalPages == 30)
      let expected: (UInt64, UInt64) = coalesce ? (0, 30) : (20, 30)
      #expect(set.range(containing: 20) ?? (0, 0) == expected)
    }
  }

  @Test func overlappingRangesUnite() {
    var set = RangeSet(coalesceAdjacent: false)
    defer { set.destroy() }
    set.insert(from: 10, below: 20)
    set.insert(from: 30, below: 40)
    set.insert(from: 19, below: 31)
    #expect(set.count == 1 && set[0] == (10, 40))
  }

  @Test func removingSplits() {
    var set = RangeSet(coalesceAdjacent: false)
    defer { set.destroy() }
    set.insert(from: 10, below: 40)
    set.remove(from: 20, below: 30)
    #expect(set.count == 2 && set[0] == (10, 20) && set[1] == (30, 40) && set.totalPages == 20)
    #expect(set.firstIntersection(from: 15, below: 35) ?? (0, 0) == (15, 20))
    #expect(set.firstIntersection(from: 20, below: 30) == nil)
    #expect(set.firstIntersection(from: 25, below: 35) ?? (0, 0) == (30, 35))
    set.removeAll()
    #expect(set.count == 0 && set.totalPages == 0 && !set.contains(10))
  }

  @Test func bordersMoveAlong() {
    var set = RangeSet(coalesceAdjacent: false)
    defer { set.destroy() }
    set.insert(from: 0, below: 10)
    set.insert(from: 10, below: 20)
    set.insert(from: 100, below: 130)
    set.move(from: 5, to: 105, count: 10)
    #expect(set.count == 6)
    #expect(set[0] == (0, 5) && set[1] == (15, 20) && set[2] == (100, 105))
    #expect(set[3] == (105, 110) && set[4] == (110, 115) && set[5] == (115, 130))
  }

  /// Random changes against one byte per page: 0 outside, else inside; `borders` says where ranges begin.
  @Test(arguments: [true, false]) func agreesWithAModel(coalesce: Bool) {
    let seed = SeededRandom.seed
    var model = RangeModel(coalesceAdjacent: coalesce)
    var set = RangeSet(coalesceAdjacent: coalesce)
    defer { set.destroy() }
    var random = SeededRandom(seed: seed)
    for step in 1...TestScale.rounds(20_000) {
      let low = random.below(200)
      let end = low + random.below(20)
      switch random.below(7) {
      case 0...2:
        set.insert(from: UInt64(low), below: UInt64(end))
        model.insert(low, end)
      case 3...5:
        set.remove(from: UInt64(low), below: UInt64(end))
        model.remove(low, end)
      default:
        let to = random.below(200)
        set.move(from: UInt64(low), to: UInt64(to), count: UInt64(end - low))
        model.move(low, to, end - low)
      }
      let ranges = (0..<set.count).map { Int(set[$0].start)..<Int(set[$0].end) }
      let page = random.below(220)
      let good =
        ranges == model.ranges && set.totalPages == UInt64(ranges.reduce(0) { $0 + $1.count })
        && set.contains(UInt64(page)) == ranges.contains { $0.contains(page) }
        && intersection(set, low, end) == ranges.map { $0.clamped(to: low..<end) }.first { !$0.isEmpty }
      guard good else {
        Issue.record("step \(step), VSWAP_SEED=\(seed)")
        return
      }
    }
  }

  private func intersection(_ set: RangeSet, _ low: Int, _ end: Int) -> Range<Int>? {
    set.firstIntersection(from: UInt64(low), below: UInt64(end)).map { Int($0.start)..<Int($0.end) }
  }
}

/// The obvious implementation: a sorted array, rebuilt for each change.
private struct RangeModel {
  let coalesceAdjacent: Bool
  var ranges: [Range<Int>] = []

  mutating func insert(_ low: Int, _ end: Int) {
    guard low < end else { return }
    var new = low..<end
    var kept: [Range<Int>] = []
    for range in ranges {
      let touches = range.upperBound == low || range.lowerBound == end
      if range.overlaps(low..<end) || (coalesceAdjacent && touches) {
        new = min(new.lowerBound, range.lowerBound)..<max(new.upperBound, range.upperBound)
      } else {
        kept.append(range)
      }
    }
    ranges = (kept + [new]).sorted { $0.lowerBound < $1.lowerBound }
  }

  mutating func remove(_ low: Int, _ end: Int) {
    guard low < end else { return }
    ranges = ranges.flatMap { range in
      guard range.overlaps(low..<end) else { return [range] }
      let head = range.lowerBound..<max(range.lowerBound, low)
      let tail = min(range.upperBound, end)..<range.upperBound
      return [head, tail].filter { !$0.isEmpty }
    }
  }

  mutating func move(_ from: Int, _ to: Int, _ count: Int) {
    guard from != to, count > 0 else { return }
    let moved = ranges.map { $0.clamped(to: from..<from + count) }.filter { !$0.isEmpty }
    remove(from, from + count)
    remove(to, to + count)
    for range in moved { insert(range.lowerBound - from + to, range.upperBound - from + to) }
  }
}
