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

  /// Reads ahead leave holes: faults there are the stream's, and do not make it go faster.
  @Test func faultsInHolesBelongToTheStream() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    for page: UInt64 in [100, 101, 103] {
      let (ahead, _) = streams.fault(page)
      streams.brought(page, ahead)
    }
    streams.brought(110, 30)
    #expect(streams.end == 140)
    #expect(streams.fault(108).ahead == 4)
    streams.brought(108, 1)
    #expect(streams.end == 140)
    #expect(streams.fault(141).ahead == 8)
  }

  @Test func onlyProvenStreamsAreReadAhead() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var page: UInt64 = 1000
    for expected in [0, 0, ReadStreams.distance] {
      let (ahead, _) = streams.fault(page)
      streams.brought(page, ahead)
      #expect((streams.want(after: page, atMost: 10_000)?.pages.count ?? 0) == expected)
      page += UInt64(ahead)
    }
  }

  /// Again when a read's worth of it has been used up, and never the same page twice.
  @Test func readsAheadFollowTheStream() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var asked: [Range<UInt64>] = []
    for page: UInt64 in 5000..<5600 {
      _ = streams.fault(page)
      streams.brought(page, 1)
      guard let (stream, range) = streams.want(after: page, atMost: .max) else { continue }
      asked.append(range)
      streams.reading(to: range.upperBound, of: stream)
    }
    #expect(asked.count >= 16)
    for (one, next) in zip(asked, asked.dropFirst()) { #expect(one.upperBound == next.lowerBound) }
    #expect(streams.want(after: 5599, atMost: 4) == nil)
    // A child that nobody keeps waiting faults while its group is over the limit.
    #expect(streams.want(after: 5599, atMost: -4) == nil)
  }

  /// There are fewer buffers than a stream wants to have read: the rest follows as reads complete, also after faults elsewhere.
  @Test func whatIsLeftToBeReadFollows() throws {
    var streams = ReadStreams()
    defer { streams.destroy() }
    for page: UInt64 in 5000..<5008 {
      _ = streams.fault(page)
      streams.brought(page, 1)
    }
    let first = streams.want(after: 5007, atMost: .max)
    let (stream, wanted) = try #require(first)
    #expect(wanted == 5008..<5008 + UInt64(ReadStreams.distance))
    #expect(streams.wanted(of: 5008) == nil)
    streams.reading(to: 5100, of: stream)
    _ = streams.fault(900_000)
    let left = try #require(streams.wanted(of: 5008))
    #expect(left.stream == stream && left.pages == 5100..<wanted.upperBound)
    streams.reading(to: wanted.upperBound, of: left.stream)
    #expect(streams.wanted(of: 5008) == nil && streams.wanted(of: 900_000) == nil)
  }

  /// Several faults wait for their reads at once, and these complete in any order.
  @Test func whatAReadBringsIsNotedWhereItBelongs() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    _ = streams.fault(1000)
    _ = streams.fault(900_000)
    streams.brought(1000, 8)
    #expect(streams.end == 900_001)
    #expect(streams.fault(1008).ahead == 2)
  }

  /// Pages passed over that are out are not wanted: less comes along each time.
  @Test func aStreamThatSkipsShrinks() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var page: UInt64 = 1000
    for _ in 0..<8 {
      let (ahead, _) = streams.fault(page)
      streams.brought(page, ahead)
      page += UInt64(ahead)
    }
    #expect(streams.expected(insteadOf: page) == nil && streams.expected(insteadOf: page + 2) == nil)
    for most in [16, 8, 4, 2, 1, 1] {
      let end = streams.end
      #expect(streams.expected(insteadOf: end + 3) == end)
      let (ahead, behind) = streams.fault(end + 3, isSkipping: true)
      #expect(ahead <= most && behind == 0)
      streams.brought(end + 3, ahead)
    }
    let first = streams.end - 1
    #expect(streams.expected(insteadOf: first - 3) == nil && streams.expected(insteadOf: first - 4) == first - 1)
  }

  /// Sequences that end early come to bring along less, down to nothing; one that does not end shows it by faults that come where it goes on.
  @Test func whatDoesNotPayIsTurnedDown() {
    var streams = ReadStreams()
    defer { streams.destroy() }
    var brought: [Int] = []
    for run: UInt64 in 1...100 {
      var sum = 0
      var page = run * 100_000
      // Each goes on for five pages, and what comes along grows beyond that.
      while page < run * 100_000 + 3 {
        let (ahead, _) = streams.fault(page)
        streams.brought(page, ahead)
        sum += ahead
        page += UInt64(ahead)
      }
      brought.append(sum)
    }
    #expect(brought[0] == 3 && brought[99] == 3)
    var page: UInt64 = 50_000_000
    var most = 0
    for _ in 0..<16 {
      let (ahead, _) = streams.fault(page)
      streams.brought(page, ahead)
      most = max(most, ahead)
      page += UInt64(ahead)
    }
    #expect(most == ReadStreams.longest)
  }
}
