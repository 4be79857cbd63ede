/// Makes inputs out of others, the way fuzzers do: most stay close to what a reader accepts, so they get deep into it.
struct Mutator {
  private var random: SeededRandom
  /// Words of the reader's language.
  private let tokens: [[UInt8]]
  /// What was accepted, and so is worth changing further.
  private var kept: [[UInt8]]
  private let corpus: [[UInt8]]
  private static let mostKept = 256
  private static let longest = 4096

  /// Numbers at which arithmetic goes wrong.
  private static let numbers = [
    "0", "-1", "1", "4095", "4096", "4097", "65535", "65536", "2147483647", "2147483648", "4294967295", "4294967296",
    "9223372036854771712", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "18446744073709551615",
    "18446744073709551616", "1e308", "1e-9", "0.5", "00", "+1", "0x10",
  ].map { Array($0.utf8) }
  private static let words: [UInt64] = [
    0, 1, 2, 255, 256, 4095, 4096, 4097, 1 << 16, 1 << 31 - 1, 1 << 31, 1 << 32 - 1, 1 << 32, 1 << 47 - 4096, 1 << 47, 1 << 48,
    1 << 56, 1 << 63 - 1,
    1 << 63, .max - 4095, .max,
  ]

  init(seed: UInt64, corpus: [[UInt8]], tokens: [[UInt8]]) {
    precondition(!corpus.isEmpty)
    random = SeededRandom(seed: seed)
    self.corpus = corpus
    self.tokens = tokens + Self.numbers
    kept = []
  }

  /// The next input.
  mutating func next() -> [UInt8] {
    var input = !kept.isEmpty && random.below(2) == 0 ? kept[random.below(kept.count)] : corpus[random.below(corpus.count)]
    for _ in 0..<[0, 1, 1, 1, 2, 3, 5, 12][random.below(8)] { change(&input) }
    if input.count > Self.longest { input.removeLast(input.count - Self.longest) }
    return input
  }

  /// The reader got to the end of `input`.
  mutating func keep(_ input: [UInt8]) {
    if kept.count < Self.mostKept { kept.append(input) } else { kept[random.below(kept.count)] = input }
  }

  private mutating func change(_ input: inout [UInt8]) {
    switch random.below(10) {
    case 0 where !input.isEmpty: input[random.below(input.count)] ^= 1 << UInt8(random.below(8))
    case 1 where !input.isEmpty: input[random.below(input.count)] = UInt8(truncatingIfNeeded: random.next())
    case 2 where !input.isEmpty: input.removeSubrange(range(input))
    case 3 where !input.isEmpty:
      let part = range(input)
      input.insert(contentsOf: Array(input[part]), at: part.upperBound)
    case 4:
      let other = corpus[random.below(corpus.count)]
      input = Array(input.prefix(random.below(input.count + 1))) + other.suffix(random.below(other.count + 1))
    case 5 where input.count >= 8: store(&input)
    case 6: input.removeLast(random.below(input.count + 1))
    case 7 where !input.isEmpty: replaceNumber(&input)
    default: input.insert(contentsOf: tokens[random.below(tokens.count)], at: random.below(input.count + 1))
    }
  }

  private mutating func range(_ input: [UInt8]) -> Range<Int> {
    let start = random.below(input.count)
    return start..<start + 1 + random.below(min(input.count - start, 1 << random.below(8)))
  }

  /// A binary number, of 1 to 8 bytes.
  private mutating func store(_ input: inout [UInt8]) {
    let bytes = 1 << random.below(4)
    var word = Self.words[random.below(Self.words.count)]
    let start =
      random.below(2) == 0 ? random.below(input.count - bytes + 1) : random.below((input.count - bytes) / bytes + 1) * bytes
    for index in start..<start + bytes {
      input[index] = UInt8(truncatingIfNeeded: word)
      word >>= 8
    }
  }

  /// The first number in digits from somewhere on becomes another one.
  private mutating func replaceNumber(_ input: inout [UInt8]) {
    let digits = UInt8(ascii: "0")...UInt8(ascii: "9")
    guard let start = input[random.below(input.count)...].firstIndex(where: { digits.contains($0) }) else { return }
    let end = input[start...].firstIndex { !digits.contains($0) } ?? input.count
    input.replaceSubrange(start..<end, with: Self.numbers[random.below(Self.numbers.count)])
  }
}
