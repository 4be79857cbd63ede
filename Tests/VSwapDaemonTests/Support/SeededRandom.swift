import Glibc

/// A reproducible random number generator: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
///
/// A property test makes one from `SeededRandom.seed`, and names the seed in each of its failures.
struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64

  /// A generator whose sequence depends on `seed` alone.
  init(seed: UInt64) {
    state = seed
  }

  /// The next 64 random bits.
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var bits = state
    bits = (bits ^ bits >> 30) &* 0xBF58_476D_1CE4_E5B9
    bits = (bits ^ bits >> 27) &* 0x94D0_49BB_1331_11EB
    return bits ^ bits >> 31
  }

  /// A number in 0 ..< bound; as good as uniform for small bounds, and fast.
  mutating func below(_ bound: Int) -> Int {
    Int(next() % UInt64(bound))
  }

  /// The seed of this run: VSWAP_SEED from the environment, or a random one.
  static let seed: UInt64 = {
    if let text = getenv("VSWAP_SEED"), let seed = UInt64(String(cString: text)) { return seed }
    return UInt64.random(in: 0...UInt64.max)
  }()
}

/// How much work the randomised tests do: VSWAP_TEST_SCALE from the environment, 1 by default; debug builds
/// and sanitizers want less.
enum TestScale {
  static let factor: Double = {
    guard let text = getenv("VSWAP_TEST_SCALE") else { return 1 }
    return Double(String(cString: text)) ?? 1
  }()

  /// `count` rounds at the scale of this run, at least 1.
  static func rounds(_ count: Int) -> Int {
    max(1, Int(Double(count) * factor))
  }
}
