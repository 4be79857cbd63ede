import Glibc
import VSwapAPI

/// Descendants of a command that run without the library and so outside of its group: statically linked and
/// set-user-ID programs, and what is started with another environment. Found by looking from time to time, so those
/// that live shorter than two looks, and orphans of such, are missed.
final class Outsiders {
  /// Names of those that were seen, in that order.
  private(set) var names: [String] = []
  private let command: Int32
  private let library: [UInt8]
  private var known: [Int32: Image] = [:]

  /// Milliseconds between two looks.
  static let interval: Int32 = 250
  /// Longest list of processes: a command that starts more at a time is not followed any further.
  private static let mostProcesses = 4096

  /// What a process executes, and what was found out about that.
  private struct Image {
    var startTime: UInt64
    var program: [UInt8]
    var verdict: Verdict
  }
  private enum Verdict {
    /// It has no library: perhaps its dynamic loader has not come so far.
    case loading
    case inside, outside
  }

  /// - Parameters:
  ///   - command: the process whose descendants are looked at.
  ///   - library: path of the library, as the kernel has it.
  init(of command: Int32, library: String) {
    self.command = command
    self.library = Array(library.utf8)
  }

  func look() {
    var now: [Int32: Image] = [:]
    // Orphans have another parent; they are known from before.
    var queue = [command] + known.keys
    var next = 0
    while next < queue.count && now.count < Self.mostProcesses {
      let process = queue[next]
      next += 1
      guard now[process] == nil, let facts = ProcessFacts(process), !facts.isZombie else { continue }
      if let former = known[process], former.startTime != facts.startTime, !isDescendant(facts, now) { continue }
      now[process] = examine(process, facts)
      queue += ProcessFacts.children(of: process)
    }
    known = now
  }

  /// A process number that was given away again may be anybody's.
  private func isDescendant(_ facts: ProcessFacts, _ now: [Int32: Image]) -> Bool {
    now[facts.parent] != nil
  }

  private func examine(_ process: Int32, _ facts: ProcessFacts) -> Image {
    let program = Self.program(of: process)
    let former = known[process].flatMap { $0.startTime == facts.startTime && $0.program == program ? $0 : nil }
    if let former, former.verdict != .loading { return former }
    var image = Image(startTime: facts.startTime, program: program, verdict: .inside)
    if !hasLibrary(process) {
      image.verdict = former == nil ? .loading : .outside
      if former != nil { names.append(Self.name(of: process)) }
    }
    return image
  }

  private func hasLibrary(_ process: Int32) -> Bool {
    guard let maps = ProcessFacts.text("/proc/\(process)/maps") else { return false }
    // A process that is about to go has no mappings.
    return maps.isEmpty || maps.split(separator: UInt8(ascii: "\n")).contains { $0.ends(with: library) }
  }

  /// What /proc/PID/exe links to; empty where this user may not know.
  private static func program(of process: Int32) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: Int(PATH_MAX)) { buffer, filled in
      filled = buffer.withMemoryRebound(to: CChar.self) {
        max(0, readlink("/proc/\(process)/exe", $0.baseAddress!, $0.count))  // the buffer is not empty
      }
    }
  }

  private static func name(of process: Int32) -> String {
    let name = ProcessFacts.text("/proc/\(process)/comm") ?? []
    return EscapedText.ascii(name.dropLast())  // the newline behind it
  }
}

extension [UInt8].SubSequence {
  fileprivate func ends(with suffix: [UInt8]) -> Bool {
    count >= suffix.count && self.suffix(suffix.count).elementsEqual(suffix)
  }
}
