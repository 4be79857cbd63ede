import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct CodecTests {
  @Test(arguments: [-5, 1, 3]) func pagesComeBack(level: Int) {
    let codec = try! Codec.create(level: level)
    let (page, copy, scratch) = (TestPage(), TestPage(), TestPage())
    defer {
      codec.destroy()
      page.destroy()
      copy.destroy()
      scratch.destroy()
    }
    for key in 0..<UInt64(TestScale.rounds(500)) {
      page.fill(key: key)
      guard let (bytes, length) = codec.compress(page.bytes) else {
        #expect(key % 16 == 1, "only noise does not compress")
        continue
      }
      #expect(length < Codec.rawThreshold && length > 0)
      #expect(codec.decompress(bytes, length: length, into: copy.bytes))
      #expect(copy.holds(key: key, scratch: scratch))
    }
  }

  @Test func garbageIsRefused() {
    let codec = try! Codec.create()
    let (page, copy) = (TestPage(), TestPage())
    defer {
      codec.destroy()
      page.destroy()
      copy.destroy()
    }
    page.fill(key: 1)
    for length in [1, 2, 3, 100, 4096] {
      #expect(!codec.decompress(page.bytes, length: length, into: copy.bytes))
    }
    page.fill(key: 7)
    guard let (bytes, length) = codec.compress(page.bytes) else {
      Issue.record("does not compress")
      return
    }
    #expect(!codec.decompress(bytes, length: length - 1, into: copy.bytes))
  }
}
