import Glibc

@testable import VSwapDaemon

/// Pages that have much in common with each other, and little in themselves: words of a vocabulary, each followed by 8 random bytes. A
/// quarter of a page is repetition.
struct CommonContent {
  private static let word = 48
  private static let words = 100
  private let vocabulary: [UInt8]
  private let scratch = TestPage()

  /// Pages of one seed have the same vocabulary.
  init(seed: UInt64) {
    var random = SeededRandom(seed: seed)
    vocabulary = (0..<Self.word * Self.words).map { _ in UInt8(truncatingIfNeeded: random.next()) }
  }

  func destroy() { scratch.destroy() }

  func fill(_ page: TestPage, key: UInt64) {
    var random = SeededRandom(seed: key)
    var place = 0
    vocabulary.withUnsafeBytes { vocabulary in
      while place <= pageSize * 3 / 4 - Self.word - 8 {
        let word = random.below(Self.words) * Self.word
        (page.bytes + place).copyMemory(from: vocabulary.baseAddress! + word, byteCount: Self.word)
        (page.bytes + place + Self.word).storeBytes(of: random.next(), as: UInt64.self)
        place += Self.word + 8
      }
    }
    while place < pageSize {
      (page.bytes + place).storeBytes(of: key, as: UInt64.self)
      place += 8
    }
  }

  func isContent(of page: TestPage, key: UInt64) -> Bool {
    fill(scratch, key: key)
    return memcmp(page.bytes, scratch.bytes, pageSize) == 0
  }

  /// Shows so many pages of a target that all samples are taken, without storing them.
  func show(to dictionaries: Dictionaries, target: UInt32, page: TestPage) {
    let samples = Dictionaries.firstSample + DictionaryTraining.samples * Dictionaries.sampleInterval
    for number in 0..<UInt64(samples) {
      // Only samples are looked at.
      if number % 4 == 3 { fill(page, key: number << 32 | UInt64(target)) }
      dictionaries.saw(page.bytes, ofTarget: target)
    }
  }
}
