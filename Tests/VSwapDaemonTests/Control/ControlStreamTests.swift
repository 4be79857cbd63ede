import Foundation
import Testing
import VSwapAPI

@testable import VSwapDaemon

/// POST /v1/swapoff, which answers line by line.
@Suite("Control streams")
struct ControlStreamTests {
  private let body = #"{"path":"/a"}"#
  private let off = SwapoffReply(
    path: "/a", slots: 1000, bytes: 1 << 20, toTarget: 600, toPool: 300, toAreas: 99, lost: 1,
    wallSeconds: 1.5, userSeconds: 0.25, systemSeconds: 0.5, state: .off)

  private func lines(_ reply: String) throws -> [SwapoffLine] {
    try ServedPlane.unchunked(reply).split(separator: "\n").map {
      try JSONDecoder().decode(SwapoffLine.self, from: Data($0.utf8))
    }
  }

  @Test("progress, then the result with the keys of the contract")
  func result() throws {
    let said = [FakeControlPlane.progress("/a", percent: 10), .result(off)]
    let served = try ServedPlane(FakeControlPlane(swapoffLines: said, lineMicroseconds: 20_000))
    let reply = try served.request("POST", "/v1/swapoff", body: body)
    #expect(reply.status == 200)
    #expect(reply.head.contains("Content-Type: application/x-ndjson"))
    #expect(reply.head.lowercased().contains("transfer-encoding: chunked"))
    #expect(try lines(reply.body) == said)
    let texts = try ServedPlane.unchunked(reply.body).split(separator: "\n").map { try ServedPlane.json(String($0)) }
    #expect(
      Set(texts[0].allKeys as? [String] ?? []) == [
        "path", "slots_done", "slots_total", "bytes_done", "bytes_total", "seconds",
      ])
    #expect(
      Set(texts[1].allKeys as? [String] ?? []) == [
        "path", "slots", "bytes", "to_target", "to_pool", "to_areas", "lost", "wall_seconds", "user_seconds",
        "system_seconds", "state",
      ])
    #expect(served.plane.calls == [.swapoff("/a", false)])
  }

  @Test("all areas, none of them, and a dry run")
  func all() throws {
    let refused = SwapoffReply(path: "/b", state: .refused, reason: "1 MiB is missing")
    let served = try ServedPlane(FakeControlPlane(swapoffLines: [.result(off), .result(refused)]))
    let reply = try served.request("POST", "/v1/swapoff", body: #"{"all":true,"dry_run":true}"#)
    #expect(try lines(reply.body) == [.result(off), .result(refused)])
    #expect(served.plane.calls == [.swapoff(nil, true)])
    let none = try ServedPlane().request("POST", "/v1/swapoff", body: #"{"all":true}"#)
    #expect(none.status == 200)
    #expect(try lines(none.body).isEmpty)
  }

  @Test("an error before the first line is a response, after it a line")
  func errors() throws {
    let error = ControlError(.notFound, "/a is no swap area")
    let early = try ServedPlane(FakeControlPlane(refusal: error)).request("POST", "/v1/swapoff", body: body)
    #expect(early.status == 404)
    #expect(try JSONDecoder().decode(ErrorReply.self, from: Data(early.body.utf8)).error == error)
    let plane = FakeControlPlane(
      swapoffLines: [FakeControlPlane.progress("/a", percent: 1)], lateRefusal: error)
    let late = try ServedPlane(plane).request("POST", "/v1/swapoff", body: body)
    #expect(late.status == 200)
    #expect(try lines(late.body) == [FakeControlPlane.progress("/a", percent: 1), .error(error)])
  }

  @Test("the connection can be used again")
  func keptAlive() throws {
    let served = try ServedPlane(FakeControlPlane(swapoffLines: [.result(off)]))
    let head = "POST /v1/swapoff HTTP/1.1\r\nContent-Length: \(body.utf8.count)\r\n"
    let requests = "\(head)\r\n\(body)\(head)Connection: close\r\n\r\n\(body)"
    #expect(try served.exchange(requests.utf8).components(separatedBy: "HTTP/1.1 200 OK").count == 3)
    #expect(served.plane.calls == [.swapoff("/a", false), .swapoff("/a", false)])
  }

  /// Endless progress, for clients that go away or read nothing.
  private func endless() throws -> ServedPlane {
    let line = FakeControlPlane.progress("/" + String(repeating: "a", count: 4000), percent: 1)
    return try ServedPlane(
      FakeControlPlane(swapoffLines: Array(repeating: line, count: 10_000), lineMicroseconds: 1000))
  }

  private func start(_ served: ServedPlane) throws -> FileHandle {
    let connection = try served.connection()
    let head =
      "POST /v1/swapoff HTTP/1.1\r\nConnection: close\r\nContent-Length: \(body.utf8.count)\r\n\r\n"
    try connection.write(contentsOf: Data((head + body).utf8))
    return connection
  }

  private func waits(for count: Int, calls served: ServedPlane) -> Bool {
    let deadline = ContinuousClock.now + .seconds(5)
    while served.plane.calls.count < count && ContinuousClock.now < deadline { usleep(10_000) }
    return served.plane.calls.count == count
  }

  @Test("a client that goes away cancels")
  func clientGone() throws {
    let served = try endless()
    let connection = try start(served)
    #expect(try connection.read(upToCount: 100)?.isEmpty == false)
    try connection.close()
    #expect(waits(for: 2, calls: served))
    #expect(served.plane.calls == [.swapoff("/a", false), .cancelled])
  }

  /// The status said that the area is in use, somebody relied on that, and then it was retired after all.
  @Test("for a client that went away before its turn came nothing is retired")
  func clientGoneEarly() throws {
    let served = try ServedPlane(FakeControlPlane(isHeld: true, swapoffLines: [.result(off)]))
    let evict = #"{"target":1}"#
    let others = try (0..<ControlWorkers.slowThreads).map { _ in try served.connection() }
    for other in others {
      let head = "POST /v1/evict HTTP/1.1\r\nConnection: close\r\nContent-Length: \(evict.utf8.count)\r\n\r\n"
      try other.write(contentsOf: Data((head + evict).utf8))
    }
    try start(served).close()
    // What the event loop refuses by itself. The second answer comes after everything that had happened before the first.
    for _ in 0..<2 { #expect(try served.exchange("nonsense\r\n\r\n".utf8).contains("400 Bad Request")) }
    served.plane.isHeld.store(false, ordering: .releasing)
    for other in others { #expect(try other.readToEnd()?.isEmpty == false) }
    #expect(try served.request("GET", "/v1/status").status == 200)
    served.stop()
    #expect(served.plane.calls.count == others.count && !served.plane.calls.contains(.swapoff("/a", false)))
  }

  @Test("a client that reads nothing slows nothing down, and misses progress alone")
  func slowClient() throws {
    let line = FakeControlPlane.progress("/" + String(repeating: "a", count: 8000), percent: 1)
    let said = Array(repeating: line, count: 1000) + [SwapoffLine.result(off)]
    let served = try ServedPlane(FakeControlPlane(swapoffLines: said, lineMicroseconds: 200))
    let connection = try start(served)
    // All progress is told while nobody reads: this would not end if the server waited for the client.
    while served.plane.reportedLines.load(ordering: .relaxed) < said.count - 1 { usleep(1000) }
    #expect(served.plane.calls == [.swapoff("/a", false)])
    let text = try connection.readToEnd().map { String(decoding: $0, as: UTF8.self) }
    let heard = try lines(ServedPlane.split(text ?? "").body)
    #expect(heard.last == .result(off))
    #expect((2..<1001).contains(heard.count), "\(heard.count)")
  }

  @Test("there is a limit to what streams at a time, and others are answered")
  func mostStreams() throws {
    let served = try endless()
    let open = [try start(served), try start(served)]
    #expect(waits(for: 2, calls: served))
    let third = try served.request("POST", "/v1/swapoff", body: body)
    #expect(third.status == 409)
    #expect(third.body.contains(#""code":"busy""#))
    #expect(try served.request("GET", "/v1/status").status == 200)
    for connection in open { try connection.close() }
    #expect(waits(for: 4, calls: served))
  }
}
