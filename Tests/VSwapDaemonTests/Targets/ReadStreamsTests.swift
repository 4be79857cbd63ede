import Testing

@testable import VSwapDaemon

@Suite struct ReadStreamsTests {
  @Test func upwardStreamsDoubleUpToTheLongest() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var page: UInt64 = 1000
    for expected in [1, 2, 4, 8, 16, 32, 32] {
      let (ahead, behind) = streams.fault(page)
      #expect(ahead == expected && behind == 0)
      streams.brought(page, ahead)
      page += UInt64(ahead)
      #expect(streams.end == page)
    }
  }

  @Test func downwardStreamsDoubleToo() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var page: UInt64 = 5000
    for expected in [1, 2, 4, 8, 16, 32, 32] {
      let (ahead, behind) = streams.fault(page)
      #expect(ahead == 1 && behind == expected - 1)
      streams.brought(page, ahead)
      streams.broughtBehind(page, behind)
      page -= UInt64(expected)
    }
  }

  @Test func aStreamThatTurnsBeginsAnew() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    for page: UInt64 in [100, 101, 102] {
      let (ahead, _) = streams.fault(page)
      streams.brought(page, ahead)
    }
    let turned = streams.fault(95)
    #expect(turned.ahead == 1 && turned.behind == 1)
  }

  @Test func severalStreamsAreToldApart() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var pages: [UInt64] = (1...8).map { $0 * 100_000 }
    for expected in [1, 2, 4, 8] {
      for index in pages.indices {
        let (ahead, _) = streams.fault(pages[index])
        #expect(ahead == expected)
        streams.brought(pages[index], ahead)
        pages[index] += UInt64(ahead)
      }
    }
  }

  @Test func scatteredFaultsBringNothingAlong() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    for page in stride(from: UInt64(1000), to: 100_000, by: 100) {
      let (ahead, behind) = streams.fault(page)
      #expect(ahead == 1 && behind == 0)
      streams.brought(page, 1)
    }
  }
}
