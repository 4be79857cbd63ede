import Testing

@testable import VSwapAPI

@Suite("Sizes")
struct ByteSizeTests {
  @Test(
    "powers of 1024",
    arguments: [
      ("0", 0), ("1", 1), ("4096", 4096), ("1K", 1024), ("64M", 64 << 20), ("2G", 2 << 30), ("64m", 64 << 20),
      ("007k", 7168), ("8589934591G", 8_589_934_591 << 30), ("9223372036854775807", Int.max),
    ])
  func parses(text: String, bytes: Int) throws {
    #expect(try ByteSize.parse(text) == bytes)
  }

  @Test(
    "garbage",
    arguments: [
      "", "M", "64X", "64MB", "64MiB", "-1", "+1", "1.5G", " 1", "1 ", "1 M", "0x10", "٣", "1_000", "M64",
      "KK", "\u{0}1",
    ])
  func refuses(text: String) {
    #expect(throws: SizeError(text: text, reason: .malformed)) { try ByteSize.parse(text) }
  }

  @Test(
    "overflow",
    arguments: ["9223372036854775808", "8589934592G", "9007199254740992K", "99999999999999999999999999"])
  func overflows(text: String) {
    #expect(throws: SizeError(text: text, reason: .tooLarge)) { try ByteSize.parse(text) }
  }

  @Test("minimum")
  func minimum() throws {
    #expect(try ByteSize.parse("4M", minimum: ByteSize.minimumLimit) == 4 << 20)
    let error = #expect(throws: SizeError.self) {
      try ByteSize.parse("4095K", minimum: ByteSize.minimumLimit)
    }
    #expect(error?.description == "'4095K' is too small (at least 4M)")
  }

  @Test(
    "for people",
    arguments: [
      (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (66_899_149, "63.8 MiB"), (1 << 30, "1.0 GiB"),
      ((1 << 20) - 1, "1.0 MiB"), (1536 << 20, "1.5 GiB"), (-2048, "-2.0 KiB"), (3 << 50, "3.0 PiB"),
    ])
  func formats(bytes: Int, text: String) {
    #expect(ByteSize.format(bytes) == text)
  }
}
