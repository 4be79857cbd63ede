/// Faults that go through memory in steps of several pages, upwards or downwards, some at a time: walks along a column of a matrix, or through one
/// field of large records. Sequences of adjacent pages are `ReadStreams`' business.
///
/// Three equal steps in a row, among faults elsewhere, make a stride (reference prediction as in Chen & Baer, IEEE Transactions on
/// Computers 44(5), 1995, without the address of the instruction, which a fault does not tell). From then on pages are brought in ahead of it:
/// one, and with each fault that comes where it was predicted twice as many as before. What is predicted is watched also where so few
/// predictions come true that nothing is brought.
///
/// A value with one owner, for its pager's thread alone.
struct Strides {
  /// Pages to bring in: `first`, `first` + `distance`, and so on. Below 2^36, and never below 0.
  struct Plan {
    var first: UInt64
    var distance: Int64
    var count: Int
    fileprivate var stride: Int

    @inline(__always)
    func page(_ index: Int) -> UInt64 { UInt64(Int64(first) + Int64(index) * distance) }
  }

  private struct Stride {
    /// Pages that the last fault was on, and that the next one is expected on: those before it were brought.
    var last: Int64 = 0
    var next: Int64 = 0
    /// 0: none.
    var distance: Int64 = 0
    /// To be brought ahead of the last fault.
    var pages = 1
    var usedAt: UInt64 = 0
  }

  /// Pages of a step: of fewer, all pages between are brought (`ReadStreams`).
  static let shortest: Int64 = 4
  static let farthest: Int64 = 512
  /// Pages ahead of a fault.
  static let longest = 16
  private static let count = 4
  /// Steps past the page that was expected: those between were resident.
  private static let leeway: Int64 = 4
  /// Faults among which the three steps are looked for.
  private static let historyCount = 16

  private let strides: UnsafeMutablePointer<Stride>
  /// A ring of the last faults that belonged to no stride.
  private let history: UnsafeMutablePointer<Int64>
  private var noted = 0
  private var clock: UInt64 = 0
  private var rate = HitRate()

  init() {
    strides = .allocate(capacity: Self.count)
    strides.initialize(repeating: Stride(), count: Self.count)
    history = .allocate(capacity: Self.historyCount)
    history.initialize(repeating: 0, count: Self.historyCount)
  }

  func destroy() {
    strides.deallocate()
    history.deallocate()
  }

  /// A fault on `page`. Returns what to bring in if that belongs to a stride. `isAlone`: it is no part of a sequence of adjacent pages, so it
  /// may be part of a stride that is not known yet. The same fault may come several times.
  mutating func fault(_ page: UInt64, isAlone: Bool) -> Plan? {
    clock += 1
    let page = Int64(page)
    for index in 0..<Self.count where belongs(page, to: strides[index]) { return advance(index, page) }
    guard isAlone, noted == 0 || page != earlier(0) else { return nil }
    let found = step(to: page)
    history[noted % Self.historyCount] = page
    noted += 1
    guard let found else { return nil }
    return begin(page, found)
  }

  /// `count` pages of the plan are in the target, or on their way there.
  @inline(__always)
  mutating func brought(_ plan: Plan, _ count: Int) {
    strides[plan.stride].next = Int64(plan.first) + Int64(count) * plan.distance
  }

  @inline(__always)
  private func belongs(_ page: Int64, to stride: Stride) -> Bool {
    let way = page - stride.last
    let most = (Int64(Self.longest) + 1 + Self.leeway) * abs(stride.distance)
    guard stride.distance != 0, abs(way) <= most, way % stride.distance == 0 else { return false }
    return way / stride.distance >= 0 && (page - stride.next) / stride.distance < Self.leeway
  }

  private mutating func advance(_ index: Int, _ page: Int64) -> Plan {
    if page != strides[index].last {
      rate.hit()
      strides[index].pages = min(2 * strides[index].pages, Self.longest)
      strides[index].last = page
    }
    strides[index].usedAt = clock
    let distance = strides[index].distance
    // It may have come to a page that was not brought.
    if (strides[index].next - page) / distance < 1 { strides[index].next = page + distance }
    return plan(index)
  }

  private func plan(_ index: Int) -> Plan {
    let stride = strides[index]
    let ahead = Int((stride.next - stride.last) / stride.distance) - 1
    var count = max(0, rate.share(of: stride.pages) - ahead)
    if stride.next < 0 { return Plan(first: 0, distance: stride.distance, count: 0, stride: index) }
    if stride.distance < 0 { count = min(count, Int(stride.next / -stride.distance) + 1) }
    return Plan(first: UInt64(stride.next), distance: stride.distance, count: count, stride: index)
  }

  private mutating func begin(_ page: Int64, _ distance: Int64) -> Plan {
    var oldest = 0
    for index in 1..<Self.count where strides[index].usedAt < strides[oldest].usedAt { oldest = index }
    // It has not come to where it was expected.
    if strides[oldest].distance != 0 { rate.miss() }
    strides[oldest] = Stride(last: page, next: page + distance, distance: distance, usedAt: clock)
    return plan(oldest)
  }

  /// The fault `index` faults before the last one that was noted.
  @inline(__always)
  private func earlier(_ index: Int) -> Int64 { history[(noted - 1 - index) % Self.historyCount] }

  /// The step of which the fault on `page` ends the third in a row.
  private func step(to page: Int64) -> Int64? {
    let count = min(noted, Self.historyCount)
    for index in 0..<count {
      let distance = page - earlier(index)
      guard abs(distance) >= Self.shortest, abs(distance) <= Self.farthest else { continue }
      if follows(page - 2 * distance, page - 3 * distance, before: index, count) { return distance }
    }
    return nil
  }

  /// Whether there were faults on `second` and, earlier, on `first`, both before the one `index` faults ago.
  private func follows(_ second: Int64, _ first: Int64, before index: Int, _ count: Int) -> Bool {
    var expected = second
    for other in index + 1..<max(index + 1, count) where earlier(other) == expected {
      if expected == first { return true }
      expected = first
    }
    return false
  }
}
