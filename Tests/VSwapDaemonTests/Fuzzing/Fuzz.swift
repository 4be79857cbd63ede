import Glibc

/// Feeds readers of outside bytes. An input that traps ends the tests: the seed that was printed brings it back.
enum Fuzz {
  /// With VSWAP_TEST_SCALE=50 that makes a million inputs.
  private static let inputs = 20_000

  /// Calls `read` with inputs that are made of `corpus`; it returns whether it got to the end of one.
  ///
  /// - Returns: how many it accepted; a fuzzer whose inputs are all refused at the door tests the door.
  @discardableResult
  static func run(
    _ name: String, corpus: [[UInt8]], tokens: [String] = [], part: Int = 1, _ read: (_ input: [UInt8]) throws -> Bool
  ) rethrows -> Int {
    let count = announce(name, part: part)
    var mutator = Mutator(seed: seed(of: name), corpus: corpus, tokens: tokens.map { Array($0.utf8) })
    var accepted = 0
    for _ in 0..<count {
      let input = mutator.next()
      guard try read(input) else { continue }
      accepted += 1
      mutator.keep(input)
    }
    return accepted
  }

  /// The same for readers of text.
  @discardableResult
  static func runText(
    _ name: String, corpus: [String], tokens: [String] = [], part: Int = 1, _ read: (_ input: String) throws -> Bool
  ) rethrows -> Int {
    try run(name, corpus: corpus.map { Array($0.utf8) }, tokens: tokens, part: part) {
      try read(String(decoding: $0, as: UTF8.self))
    }
  }

  /// Inputs of a fuzzer that makes them itself, one `part`-th of the usual number; says how to bring them back.
  static func announce(_ name: String, part: Int = 1) -> Int {
    let count = TestScale.rounds(inputs / part)
    // At once, and not into a buffer that a trap throws away.
    let line = "fuzzing \(name): \(count) inputs, VSWAP_SEED=\(SeededRandom.seed)\n"
    _ = write(STDOUT_FILENO, line, line.utf8.count)
    return count
  }

  /// A seed of its own for each reader, the same in each run with this VSWAP_SEED (FNV-1a).
  static func seed(of name: String) -> UInt64 {
    name.utf8.reduce(SeededRandom.seed ^ 0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
  }
}
