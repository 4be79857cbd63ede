/// Faults of one target that follow each other closely: since when, and whether of one thread or of several. Its pager's alone.
struct FaultStorm {
  /// Nanoseconds: a page from RAM is asked for, brought and used in a small part of it.
  static let gap: UInt64 = 200_000
  /// Nanoseconds between faults that still follow each other steadily: a read from a disk may take so long.
  private static let lull: UInt64 = 2_000_000
  /// Nanoseconds without a fault after which none of all that matters, whatever is being waited for.
  private static let end: UInt64 = 100_000_000
  /// Nanoseconds for which several threads are reckoned with after they have faulted in turn: to change between what is best for one and what is best
  /// for several takes system calls, and moves the pager.
  private static let memory: UInt64 = 5_000_000
  /// Nanoseconds after a steady fault for which a halted CPU would be in the way.
  static let aftermath: UInt64 = 10_000_000
  /// Nanoseconds for which the pager looks for faults without sleeping. In a storm the next one comes in a small part of it, unless somebody has the
  /// pager's CPU, or the threads that it woke there do not get it: those of another scheduler group do not by its yielding.
  static let patience: UInt64 = 50_000
  /// Nanoseconds for which it then sleeps, as it does otherwise: the first time, and at most. Twice as many each time, until looking was of use often.
  private static let rests: ClosedRange<UInt64> = 1_000_000...64_000_000
  private static let often = 256
  /// Rounds of the pager in which pager and program may still be on different CPUs.
  private static let young = 16..<256

  /// As of the last round that served any.
  private var faults = 0
  /// Threads that faulted last, the latest one first.
  private var threads: (Int32, Int32) = (0, 0)
  private var at: UInt64 = 0
  private var rounds = 0
  private var steadyRounds = 0
  /// Monotonic nanoseconds until which several threads are taken to fault in turn.
  private var sharedUntil: UInt64 = 0
  /// The same, with `memory`.
  private var severalUntil: UInt64 = 0
  /// The same for three or more.
  private var crowdedUntil: UInt64 = 0
  private var restsUntil: UInt64 = 0
  private var rest = rests.lowerBound
  private var looks = 0

  /// After a round of the pager. `faults`: all there ever were, `thread`: whose the first one in it was. false: there was none in it.
  mutating func note(faults total: Int, thread: Int32, now: UInt64) -> Bool {
    guard total != faults else { return false }
    rounds = now - at < Self.gap ? rounds + 1 : 0
    steadyRounds = now - at < Self.lull ? steadyRounds + 1 : 0
    let isNew = thread != threads.0
    if isRaging && (total - faults > 1 || isNew) { (sharedUntil, severalUntil) = (now + Self.gap, now + Self.memory) }
    if total - faults > 2 || isNew && thread != threads.1 { crowdedUntil = now + Self.gap }
    if isNew { threads = (thread, threads.0) }
    (faults, at) = (total, now)
    return true
  }

  /// Whether faults have come often enough, for long enough, for the kernel to be asked not to halt CPUs.
  func isSteady(at now: UInt64) -> Bool { steadyRounds >= Self.young.lowerBound && now - at < Self.end }
  /// Whether it has lasted long enough for CPUs to be kept busy.
  var isRaging: Bool { rounds >= Self.young.lowerBound }
  var isBeginning: Bool { rounds == Self.young.lowerBound }
  var isYoung: Bool { Self.young.contains(rounds) }
  /// Several threads fault in turn.
  var isShared: Bool { at < sharedUntil }
  /// They did lately.
  var isOfSeveral: Bool { at < severalUntil }
  /// They do, and it is of use to look for their faults without sleeping.
  var isToBeWatched: Bool { isShared && at >= restsUntil }
  /// Three or more do: then threads gather around the pager by themselves.
  var isCrowded: Bool { isToBeWatched && at < crowdedUntil }

  /// The pager yielded, and found something.
  mutating func endedLook() {
    looks += 1
    if looks >= Self.often { rest = Self.rests.lowerBound }
  }

  /// It found nothing in `patience`.
  mutating func endedLookInVain(at now: UInt64) {
    restsUntil = now + rest
    rest = min(2 * rest, Self.rests.upperBound)
    looks = 0
  }
}
