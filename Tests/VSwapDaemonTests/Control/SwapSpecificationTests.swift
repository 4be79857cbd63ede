import Foundation
import Testing
import VSwapAPI

@testable import VSwapDaemon

@Suite("Swap areas on the command line")
struct SwapSpecificationTests {
  @Test(
    "PATH:SIZE[:PRIO], read from the right",
    arguments: [
      ("/swap0:2G", "/swap0", 2 << 30, nil), ("/swap0:64M:5", "/swap0", 64 << 20, 5), ("a:2M:0", "a", 2 << 20, 0),
      ("/a:b:2M", "/a:b", 2 << 20, nil), ("/a:b:2M:32767", "/a:b", 2 << 20, 32767), ("/a:7:2M", "/a:7", 2 << 20, nil),
      ("/a:64M:2M", "/a:64M", 2 << 20, nil), ("/a:64M:2097152", "/a:64M", 2 << 20, nil), ("::2M", ":", 2 << 20, nil),
    ] as [(String, String, Int, Int?)])
  func parses(text: String, path: String, bytes: Int, priority: Int?) throws {
    let expected = SwapSpecification(path: path, sizeBytes: bytes, priority: priority)
    #expect(try SwapSpecification(parsing: text) == expected)
    #expect(try SwapSpecification(parsing: expected.text) == expected)
    let discarding = try SwapSpecification(parsing: text + ":discard")
    #expect(discarding.discards && discarding.path == path && discarding.sizeBytes == bytes && discarding.priority == priority)
    #expect(try SwapSpecification(parsing: discarding.text) == discarding)
  }

  @Test(
    "anything else is refused with a reason",
    arguments: [
      ("", "the size is missing"), ("/swap0", "the size is missing"), ("/swap0:", "'' is not a size"),
      (":2M", "the path is empty"), (":2M:1", "the path is empty"), ("/a:64X", "'64X' is not a size"),
      ("/a:1M", "at least 2M"), ("/a:100", "at least 2M"), ("/a:2M:-2", "'-2' is not a size"),
      ("/a:2M:32768", "from 0 to 32767"), ("/a:2M:", "'' is not a size"), ("/a:2M:x", "'x' is not a size"),
      ("/a:99999999999G", "more than this machine"), ("/a:discard", "'discard' is not a size"),
    ])
  func refuses(text: String, reason: String) {
    let error = #expect(throws: SwapSyntaxError.self) { try SwapSpecification(parsing: text) }
    #expect(error.map(String.init(describing:))?.contains(reason) == true, "\(String(describing: error))")
  }

  @Test("several, with absolute paths")
  func several() throws {
    let areas = try SwapSpecification.parse(["/a:2M", "b:3M:1"])
    #expect(areas.map(\.priority) == [nil, 1])
    #expect(areas[0].path == "/a" && areas[1].path.hasPrefix("/") && areas[1].path.hasSuffix("/b"))
  }

  @Test("the smallest size is the one that the daemon takes")
  func smallest() {
    #expect(ByteSize.minimumArea == AreaFile.sizes.lowerBound)
  }

  @Test("requests say what they were asked")
  func requests() throws {
    for request in [SwapoffRequest(path: "/a", dryRun: true), SwapoffRequest(path: nil, dryRun: false)] {
      #expect(try coded(request) == request)
    }
    for request in [
      SwaponRequest(path: "/a", sizeBytes: 2 << 20, priority: 3), SwaponRequest(path: "/a", sizeBytes: nil, priority: nil),
      SwaponRequest(path: "/a", sizeBytes: nil, priority: nil, discards: true),
    ] {
      #expect(try coded(request) == request)
    }
  }

  private func coded<Value: Codable>(_ value: Value) throws -> Value {
    try JSONDecoder().decode(Value.self, from: JSONEncoder().encode(value))
  }
}
