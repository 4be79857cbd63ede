import Testing

@testable import VSwapDaemon

@Suite struct StridesTests {
  /// Where a program's pages are, and what faults on them bring along: what the fault path does with sequences and strides.
  private struct Memory {
    /// Number of the first page.
    private let base: UInt64 = 1 << 20
    private var isOut: [Bool]
    var streams = ReadStreams()
    var strides = Strides()
    var faults = 0
    var broughtAlong = 0

    init(pages: Int) { isOut = Array(repeating: true, count: pages) }

    func destroy() {
      streams.destroy()
      strides.destroy()
    }

    private func isOut(_ page: UInt64) -> Bool { page >= base && page < base + UInt64(isOut.count) && isOut[Int(page - base)] }

    mutating func touch(_ touched: Int) {
      guard isOut[touched] else { return }
      faults += 1
      let page = base + UInt64(touched)
      let expected = streams.expected(insteadOf: page)
      let (ahead, behind) = streams.fault(page, isSkipping: expected.map { isOut($0) } ?? false)
      let plan = strides.fault(page, isAlone: expected != nil || ahead + behind == 1)
      isOut[touched] = false
      var count = 1
      while count < ahead, isOut(page + UInt64(count)) { count += bring(page + UInt64(count)) }
      streams.brought(page, count)
      var below = 0
      while below < behind, isOut(page - UInt64(below) - 1) { below += bring(page - UInt64(below) - 1) }
      if below > 0 { streams.broughtBehind(page, below) }
      guard let plan else { return }
      for index in 0..<plan.count where isOut(plan.page(index)) { _ = bring(plan.page(index)) }
      strides.brought(plan, plan.count)
    }

    private mutating func bring(_ page: UInt64) -> Int {
      isOut[Int(page - base)] = false
      broughtAlong += 1
      return 1
    }
  }

  @Test(arguments: [4, 5, 7, 16, 17, 64, 300, 512])
  func aColumnTakesFewFaultsUpwardsAndDownwards(step: Int) {
    for isDownward in [false, true] {
      var memory = Memory(pages: step * 1000)
      defer { memory.destroy() }
      for row in 0..<1000 { memory.touch(isDownward ? step * (1000 - row) - 1 : step * row) }
      // Four until it is known, five until it is at full length, one in seventeen then; some bring along what lies past the end.
      #expect(memory.faults <= 4 + 5 + 1000 / 17 + 1, "\(step), downward: \(isDownward)")
      #expect(memory.broughtAlong <= 1000 + Strides.longest)
    }
  }

  @Test(arguments: [4, 7, 64, 512])
  func everyColumnTakesFewFaults(step: Int) {
    var memory = Memory(pages: step * 256)
    defer { memory.destroy() }
    for column in 0..<step {
      let before = memory.faults
      for row in 0..<256 { memory.touch(step * row + column) }
      #expect(memory.faults - before <= 26, "column \(column)")
    }
  }

  /// Two walks at once, and faults elsewhere in between.
  @Test func stridesAreToldApart() {
    var memory = Memory(pages: 1_000_000)
    defer { memory.destroy() }
    var random = SeededRandom(seed: 7)
    for row in 0..<500 {
      memory.touch(1000 + 64 * row)
      memory.touch(500_000 - 100 * row)
      if row % 4 == 0 { memory.touch(600_000 + Int(random.next() % 400_000)) }
    }
    #expect(memory.faults <= 125 + 2 * (4 + 5 + 500 / 17 + 1))
  }

  /// Neighbours that are resident do not hide a stride, and one whose pages are resident in part goes on.
  @Test func strideOverResidentPages() {
    var memory = Memory(pages: 16_000)
    defer { memory.destroy() }
    for page in 0..<16_000 where page % 8 != 0 || page % 80 == 40 { memory.touch(page) }
    let before = memory.faults
    for row in 0..<2000 { memory.touch(8 * row) }
    #expect(memory.faults - before <= 4 + 5 + 2000 / 16)
  }

  @Test(arguments: [1, 2, 3] as [UInt64])
  func randomFaultsBringHardlyAnythingAlong(seed: UInt64) {
    var memory = Memory(pages: 131_072)
    defer { memory.destroy() }
    var random = SeededRandom(seed: seed)
    for _ in 0..<60_000 { memory.touch(Int(random.next() % 131_072)) }
    #expect(memory.broughtAlong <= memory.faults / 100)
  }

  /// Walks of all lengths and steps, one after the other: never more faults than touches, nor more brought along than is touched.
  @Test func mixtures() {
    for seed in SeededRandom.seed..<SeededRandom.seed + 8 {
      var random = SeededRandom(seed: seed)
      var memory = Memory(pages: 200_000)
      defer { memory.destroy() }
      var touches = 0
      while touches < 20_000 {
        let step = Int.random(in: -550...550, using: &random)
        var page = Int.random(in: 0..<200_000, using: &random)
        for _ in 0..<Int.random(in: 1...60, using: &random) where page >= 0 && page < 200_000 {
          memory.touch(page)
          touches += 1
          page += step
        }
      }
      #expect(memory.faults <= touches && memory.broughtAlong <= touches, "seed \(seed)")
    }
  }

  @Test func aStrideDownToTheFirstPageEndsThere() throws {
    var strides = Strides()
    defer { strides.destroy() }
    var plan: Strides.Plan?
    for page: UInt64 in [2600, 2100, 1600, 1100] { plan = strides.fault(page, isAlone: true) }
    let first = try #require(plan)
    #expect(first.first == 600 && first.distance == -500 && first.count == 1)
    strides.brought(first, 1)
    // Of two only one is left.
    plan = strides.fault(100, isAlone: true)
    let second = try #require(plan)
    #expect(second.count == 0)
  }

  /// Served anew after it waited for a read, a fault changes nothing, and what could not be brought comes later.
  @Test func theSameFaultAgain() throws {
    var strides = Strides()
    defer { strides.destroy() }
    var plan: Strides.Plan?
    for page: UInt64 in [1000, 1000, 1064, 1064, 1128] { #expect(strides.fault(page, isAlone: true) == nil) }
    plan = strides.fault(1192, isAlone: true)
    let first = try #require(plan)
    #expect(first.first == 1256 && first.count == 1)
    plan = strides.fault(1192, isAlone: true)
    let again = try #require(plan)
    #expect(again.first == 1256 && again.count == 1)
    strides.brought(again, 1)
    plan = strides.fault(1192, isAlone: true)
    let empty = try #require(plan)
    #expect(empty.count == 0)
    // It waits for the read of the page that was brought.
    plan = strides.fault(1256, isAlone: true)
    let next = try #require(plan)
    #expect(next.first == 1320 && next.count == 2)
  }

  @Test func stridesThatEndAtOnceComeToBringNothing() throws {
    var strides = Strides()
    defer { strides.destroy() }
    var counts: [Int] = []
    for walk: UInt64 in 1...40 {
      var plan: Strides.Plan?
      for row: UInt64 in 0..<4 { plan = strides.fault(walk * 1_000_000 + 100 * row, isAlone: true) }
      let found = try #require(plan)
      counts.append(found.count)
      strides.brought(found, found.count)
    }
    #expect(counts.first == 1 && counts.last == 0)
    // One that goes on has to show it a few times.
    var grown = 0
    var page: UInt64 = 500
    for _ in 0..<24 {
      let plan = strides.fault(page, isAlone: true)
      if let plan { strides.brought(plan, plan.count) }
      grown = max(grown, plan?.count ?? 0)
      page += 100 * UInt64(1 + (plan?.count ?? 0))
    }
    #expect(grown == Strides.longest)
  }
}
