import Testing

@testable import VSwapDaemon

@Suite struct AutoLimitTests {
  @Test(
    "finds the working set, wherever it is, at the price agreed on",
    arguments: [SimulatedProgram.Layout.front, .middle, .scattered])
  func converges(layout: SimulatedProgram.Layout) {
    var program = SimulatedProgram(pages: 65536, working: 16384, layout: layout)
    var run = SimulatedRun()
    run.advance(&program, seconds: 60)
    #expect(program.residentPages <= 32768, "half of it is cold")
    run.advance(&program, seconds: 180)
    #expect(program.residentPages >= 16384 && program.residentPages <= 16384 + 16384 / 8, "\(program.residentPages)")
    #expect(run.slowdown <= AutoLimit.target * 1.05, "\(run.slowdown)")
    run.forget()
    run.advance(&program, seconds: 300)
    #expect(run.slowdown <= AutoLimit.target / 2, "nothing is left to gain: \(run.slowdown)")
  }

  @Test("a program that uses all of its memory keeps it")
  func allHot() {
    var program = SimulatedProgram(pages: 65536, working: 65536, layout: .front)
    var run = SimulatedRun()
    run.advance(&program, seconds: 300)
    #expect(program.residentPages == 65536)
    #expect(run.slowdown <= AutoLimit.target * 1.05)
    #expect(run.lastDecision.limitPages > 65536 * 7 / 8)
  }

  @Test("growth is followed, never held back")
  func growth() {
    var program = SimulatedProgram(pages: 16384, working: 8192, layout: .front)
    var run = SimulatedRun()
    run.advance(&program, seconds: 120)
    for second in 1...60 {
      program.grow(by: 1024)
      run.advance(&program, seconds: 1)
      #expect(run.lastDecision.limitPages >= 8192 + second * 1024 - AutoLimit.most(of: program.residentPages, isIdle: false))
    }
    #expect(program.residentPages >= 8192 + 60 * 1024)
    #expect(run.slowdown <= AutoLimit.target * 1.1, "\(run.slowdown)")
  }

  @Test("a working set that moves comes back at once, and the old one goes")
  func phaseChange() {
    var program = SimulatedProgram(pages: 65536, working: 16384, layout: .front)
    var run = SimulatedRun()
    run.advance(&program, seconds: 240)
    let before = run.lastDecision.limitPages
    program.moveWorkingSet(to: .back)
    run.advance(&program, seconds: 1)
    #expect(program.residentPages >= 16384 * 2 - 1024)
    #expect(run.lastDecision.limitPages > before + 8192)
    #expect(run.lastDecision.evict == 0, "it has suffered enough")
    run.forget()
    run.advance(&program, seconds: 20)
    #expect(run.slowdown == 0)
    run.advance(&program, seconds: 300)
    #expect(program.residentPages <= 16384 + 16384 / 8, "\(program.residentPages)")
    #expect(run.slowdown <= AutoLimit.target, "\(run.slowdown)")
  }

  @Test("an idle program shrinks to the floor, slowly")
  func idle() {
    var program = SimulatedProgram(pages: 65536, working: 0, layout: .front)
    program.isIdle = true
    var run = SimulatedRun()
    run.advance(&program, seconds: 60)
    #expect(program.residentPages > 40000 && program.residentPages < 65536)
    run.advance(&program, seconds: 1500)
    #expect(program.residentPages == AutoLimit.floorPages)
    #expect(run.lastDecision == .init(evict: 0, skip: 0, limitPages: AutoLimit.floorPages))
  }

  @Test("where nothing can be evicted it asks less and less often")
  func vain() {
    var controller = AutoLimit()
    var asked = 0
    var isVain = false
    for _ in 0..<600 {
      var sample = SimulatedRun.quiet(residentPages: 20000)
      sample.isVain = isVain
      let decision = controller.decide(sample)
      isVain = decision.evict > 0
      if isVain { asked += 1 }
    }
    #expect(asked >= 10 && asked <= 24, "\(asked)")
  }

  @Test("whatever is measured, decisions stay within bounds and depend on the samples alone")
  func bounds() {
    var random = SeededRandom(seed: SeededRandom.seed)
    for _ in 0..<TestScale.rounds(200) {
      var controller = AutoLimit()
      for _ in 0..<300 {
        let sample = Self.anySample(&random)
        var twin = controller
        let decision = controller.decide(sample)
        #expect(decision == twin.decide(sample))
        let most = AutoLimit.most(of: sample.residentPages, isIdle: false)
        #expect(decision.evict >= 0 && decision.evict <= most, "seed \(SeededRandom.seed): \(sample)")
        #expect(decision.skip >= 0 && decision.skip <= sample.residentPages / 4, "seed \(SeededRandom.seed): \(sample)")
        let left = sample.residentPages - decision.evict
        #expect(decision.evict == 0 || left >= AutoLimit.floorPages, "seed \(SeededRandom.seed): \(sample)")
        #expect(decision.limitPages == max(AutoLimit.floorPages, left), "seed \(SeededRandom.seed): \(sample)")
        let allowed = Double(max(sample.nanoseconds, sample.cpuNanoseconds)) * AutoLimit.target
        let isInDebt = Double(sample.stalledNanoseconds) > allowed + 4e7
        #expect(!isInDebt || decision.evict == 0, "seed \(SeededRandom.seed): \(sample)")
      }
    }
  }

  private static func anySample(_ random: inout SeededRandom) -> AutoLimit.Sample {
    func any(_ bits: Int) -> Int { random.below(1 << random.below(bits + 1)) }
    return AutoLimit.Sample(
      nanoseconds: AutoLimit.intervalNanoseconds + UInt64(any(34)), residentPages: any(28), swappedPages: any(28),
      evictions: any(24), faults: any(24), stalledNanoseconds: UInt64(any(40)), cpuNanoseconds: UInt64(any(36)),
      isVain: random.below(8) == 0)
  }
}

/// A controller at work on a program, and what that costs.
struct SimulatedRun {
  private var controller = AutoLimit()
  private(set) var lastDecision = AutoLimit.Decision(evict: 0, skip: 0, limitPages: 0)
  private var stalled = 0.0
  private var passed = 0.0
  var slowdown: Double { stalled / passed }

  mutating func forget() { (stalled, passed) = (0, 0) }

  mutating func advance(_ program: inout SimulatedProgram, seconds: Int) {
    for _ in 0..<seconds {
      let evicted = program.evict(lastDecision)
      let faults = program.work()
      let stall = UInt64(faults) * SimulatedProgram.faultNanoseconds
      stalled += Double(stall) / 1e9
      passed += 1
      var sample = Self.quiet(residentPages: program.residentPages)
      sample.swappedPages = program.pages - program.residentPages
      sample.evictions = evicted
      sample.faults = faults
      sample.stalledNanoseconds = stall
      if !program.isIdle { sample.cpuNanoseconds = 1_000_000_000 - min(stall, 1_000_000_000) }
      lastDecision = controller.decide(sample)
    }
  }

  /// A second in which nothing happened.
  static func quiet(residentPages: Int) -> AutoLimit.Sample {
    AutoLimit.Sample(
      nanoseconds: 1_000_000_000, residentPages: residentPages, swappedPages: 0, evictions: 0, faults: 0, stalledNanoseconds: 0,
      cpuNanoseconds: 0)
  }
}

/// A program that touches each page of its working set every second, and a reclaimer that goes through its memory in the order of
/// addresses and gives pages that came back a second chance.
struct SimulatedProgram {
  enum Layout { case front, middle, back, scattered }
  static let faultNanoseconds: UInt64 = 15_000

  var isIdle = false
  private var isResident: [Bool]
  private var chances: [Int]
  private var working: [Int] = []
  private var hand = 0
  private(set) var residentPages: Int
  var pages: Int { isResident.count }

  init(pages: Int, working count: Int, layout: Layout) {
    isResident = Array(repeating: true, count: pages)
    chances = Array(repeating: 0, count: pages)
    residentPages = pages
    working = Array(repeating: 0, count: count)
    moveWorkingSet(to: layout)
  }

  mutating func moveWorkingSet(to layout: Layout) {
    let (count, pages) = (working.count, self.pages)
    working = (0..<count).map {
      switch layout {
      case .front: $0
      case .middle: (pages - count) / 2 + $0
      case .back: pages - count + $0
      case .scattered: $0 * (pages / count)
      }
    }
  }

  /// New pages that are used from now on.
  mutating func grow(by count: Int) {
    working += pages..<pages + count
    isResident += Array(repeating: true, count: count)
    chances += Array(repeating: 0, count: count)
    residentPages += count
  }

  /// Returns how many went.
  mutating func evict(_ decision: AutoLimit.Decision) -> Int {
    hand += decision.skip
    let goal = min(decision.evict, residentPages)
    var left = goal
    while left > 0 {
      if hand >= pages { hand = 0 }
      if isResident[hand] {
        if chances[hand] > 0 {
          chances[hand] -= 1
        } else {
          isResident[hand] = false
          residentPages -= 1
          left -= 1
        }
      }
      hand += 1
    }
    return goal
  }

  /// A second. Returns the faults.
  mutating func work() -> Int {
    guard !isIdle else { return 0 }
    var faults = 0
    for page in working where !isResident[page] {
      isResident[page] = true
      chances[page] = 2
      residentPages += 1
      faults += 1
    }
    return faults
  }
}
