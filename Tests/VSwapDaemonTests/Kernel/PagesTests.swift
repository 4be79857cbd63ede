import Testing

@testable import VSwapDaemon

@Suite struct PagesTests {
  /// `vswapctl evict --size` hands on what it is given.
  @Test(
    "pages of any number of bytes",
    arguments: [(0, 0), (1, 1), (4096, 1), (4097, 2), (Int.max, 1 << 51), (Int.max - 4094, 1 << 51)])
  func anyNumberOfBytes(bytes: Int, expected: Int) {
    #expect(pages(covering: bytes) == expected)
  }
}
