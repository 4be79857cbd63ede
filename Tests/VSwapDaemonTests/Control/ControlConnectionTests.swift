import Foundation
import Testing
import VSwapAPI

@testable import VSwapDaemon

@Suite("Control connections")
struct ControlConnectionTests {
  @Test(
    "what is not HTTP gets 400",
    arguments: [
      "\u{0}\u{1}\u{2}\r\n\r\n", "hello\r\n\r\n", "GET /v1/status\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
    ])
  func garbage(text: String) throws {
    let served = try ServedPlane()
    let reply = try ServedPlane.split(served.exchange(text.utf8))
    #expect(reply.status == 400)
    #expect(try ServedPlane.json(reply.body)["error"] != nil)
    #expect(try served.request("GET", "/v1/status").status == 200)
  }

  @Test("a body over the limit gets 413, announced or not")
  func largeBody() throws {
    let served = try ServedPlane()
    let body = String(repeating: " ", count: ControlHandler.longestBody + 1)
    let announced = try served.request("POST", "/v1/evict", body: body)
    #expect(announced.status == 413)
    #expect(announced.body.contains(#""code":"too_large""#))

    let size = String(body.utf8.count, radix: 16)
    let chunked =
      "POST /v1/evict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\(size)\r\n\(body)\r\n0\r\n\r\n"
    #expect(try ServedPlane.split(served.exchange(chunked.utf8)).status == 413)
    #expect(served.plane.calls.isEmpty)

    let fits = String(repeating: " ", count: ControlHandler.longestBody - 20) + #"{"target":"7"}"#
    #expect(try served.request("POST", "/v1/evict", body: fits).status == 200)
  }

  @Test("a head over the limit gets 413")
  func largeHead() throws {
    let served = try ServedPlane()
    let half = String(repeating: "a", count: ControlHandler.longestHead / 2)
    #expect(try served.request("GET", "/v1/status", headers: ["A: \(half)"]).status == 200)
    #expect(try served.request("GET", "/v1/status", headers: ["A: \(half)", "B: \(half)"]).status == 413)
    #expect(
      try served.request("GET", "/v1/status", headers: ["A: \(half)\(half)\(half)\(half)"]).status == 413)
    #expect(try served.request("GET", "/" + half + half).status == 413)
  }

  @Test("a connection takes several requests, sent at once")
  func pipelining() throws {
    let served = try ServedPlane()
    func evict(_ target: Int, _ connection: String) -> String {
      let body = #"{"target":\#(target)}"#
      return
        "POST /v1/evict HTTP/1.1\r\nConnection: \(connection)\r\nContent-Length: \(body.utf8.count)\r\n\r\n"
        + body
    }
    let requests = evict(1, "keep-alive") + evict(2, "keep-alive") + evict(3, "close")
    let reply = try served.exchange(requests.utf8)
    #expect(reply.components(separatedBy: "HTTP/1.1 200 OK").count == 4)
    #expect(served.plane.calls == [.evict(.pid(1), nil), .evict(.pid(2), nil), .evict(.pid(3), nil)])
  }

  @Test("curl's Expect: 100-continue is answered")
  func expectContinue() throws {
    let served = try ServedPlane()
    let head =
      "POST /v1/detach HTTP/1.1\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    let reply = try served.exchange((head + #"{"pid":1}"#).utf8)
    #expect(reply.hasPrefix("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"))
  }

  @Test("a slow command holds up nobody else")
  func concurrency() throws {
    let served = try ServedPlane(FakeControlPlane(isHeld: true))
    defer { served.plane.isHeld.store(false, ordering: .releasing) }
    let slow = try served.connection()
    let body = #"{"target":1}"#
    try slow.write(
      contentsOf: Data("POST /v1/evict HTTP/1.1\r\nConnection: close\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)".utf8))
    // If they had to wait for it, this would never end well.
    for _ in 0..<20 { #expect(try served.request("GET", "/v1/status").status == 200) }
    #expect(served.plane.calls.isEmpty)
    served.plane.isHeld.store(false, ordering: .releasing)
    let reply = try slow.readToEnd() ?? Data()
    #expect(String(decoding: reply, as: UTF8.self).hasPrefix("HTTP/1.1 200 OK"))
    #expect(served.plane.calls == [.evict(.pid(1), nil)])
  }

  @Test("four commands that wait for a target, and a queue of them, do not hold up what waits for nobody")
  func quickRequests() throws {
    let served = try ServedPlane(FakeControlPlane(isHeld: true))
    defer { served.plane.isHeld.store(false, ordering: .releasing) }
    var waiting: [FileHandle] = []
    for _ in 0..<ControlWorkers.mostSlow { waiting.append(try sendEvict(served)) }
    for path in ["/v1/status", "/v1/areas", "/metrics", "/nothing"] {
      #expect(try served.request("GET", path).status == (path == "/nothing" ? 404 : 200))
    }
    #expect(try served.request("POST", "/v1/limit", body: #"{"group":"a","limit_bytes":null}"#).status == 200)
    #expect(served.plane.calls == [.setLimit("a", .none)])
    // One more that may take long is told so.
    let refused = try served.request("POST", "/v1/restore", body: #"{"target":1}"#)
    #expect(refused.status == 503 && refused.body.contains("wait for one of them"))
    served.plane.isHeld.store(false, ordering: .releasing)
    for handle in waiting {
      #expect(String(decoding: try handle.readToEnd() ?? Data(), as: UTF8.self).hasPrefix("HTTP/1.1 200 OK"))
    }
  }

  private func sendEvict(_ served: ServedPlane) throws -> FileHandle {
    let handle = try served.connection()
    let body = #"{"target":1}"#
    let head = "POST /v1/evict HTTP/1.1\r\nConnection: close\r\nContent-Length: \(body.utf8.count)\r\n\r\n"
    try handle.write(contentsOf: Data((head + body).utf8))
    return handle
  }

  @Test("slow and silent clients lock nobody out: the one that has been silent for longest makes room")
  func connectionLimit() throws {
    let served = try ServedPlane()
    var open: [FileHandle] = []
    defer { for handle in open { try? handle.close() } }
    for index in 0..<(3 * ControlServer.mostConnections) {
      open.append(try served.connection())
      // Some stop in the middle of a request, some do not read the answer to one.
      if index % 3 == 1 { try? open[index].write(contentsOf: Data("POST /v1/evict HTTP/1.1\r\n".utf8)) }
      if index % 3 == 2 { try? open[index].write(contentsOf: Data("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".utf8)) }
    }
    for _ in 0..<3 { #expect(try served.request("GET", "/v1/status").status == 200) }
    #expect(try #require(open.first).readToEnd() ?? Data() == Data(), "the first one was closed")
  }

  @Test("a request has to be there in time, whatever trickles in")
  func slowRequest() throws {
    let times = ControlTimes(head: .milliseconds(200), body: .milliseconds(200), response: .seconds(60))
    let served = try ServedPlane(times: times)
    for begin in ["GET /v1/st", "POST /v1/evict HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{"] {
      let handle = try served.connection()
      try handle.write(contentsOf: Data(begin.utf8))
      // Ends when the server has closed the connection, which it never would if a byte began the time anew.
      while (try? handle.write(contentsOf: Data(" ".utf8))) != nil { usleep(20_000) }
    }
  }

  @Test("a response has to be taken in time, and the next request waits for that")
  func unreadResponses() throws {
    let served = try ServedPlane(times: ControlTimes(head: .seconds(60), body: .seconds(60), response: .milliseconds(200)))
    let handle = try served.connection()
    let requests = Data(String(repeating: "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", count: 1000).utf8)
    // Nothing is read: ends when the server has closed the connection.
    while (try? handle.write(contentsOf: requests)) != nil {}
    #expect(try served.request("GET", "/v1/status").status == 200)
  }

  @Test("the socket is the owner's alone, and goes with the server")
  func socketFile() throws {
    let served = try ServedPlane()
    let attributes = try FileManager.default.attributesOfItem(atPath: served.socketPath)
    #expect(attributes[.posixPermissions] as? Int == 0o600)
    served.stop()
    #expect(!FileManager.default.fileExists(atPath: served.socketPath))
  }

  @Test("a second server at the same place is refused, and the first goes on")
  func secondServer() throws {
    let served = try ServedPlane()
    let second = try ControlServer(plane: FakeControlPlane(), socketPath: served.socketPath)
    let error = #expect(throws: StartupError.self) { try second.start() }
    #expect(error?.message.contains("answers at \(served.socketPath) already") == true)
    second.stop()
    #expect(try served.request("GET", "/v1/status").status == 200)
  }

  @Test("a stale socket is replaced, another file is left alone")
  func staleSocket() throws {
    let directory = try ScratchDirectory()
    let path = "\(directory.path)/control.sock"
    let stale = try ControlSocket(path: path)
    let server = try ControlServer(plane: FakeControlPlane(), socketPath: path)
    try Spawning.alone {
      close(try stale.listen())
      try server.start()
    }
    server.stop()

    let file = try directory.file("plain", [1])
    let blocked = try ControlServer(plane: FakeControlPlane(), socketPath: file)
    #expect(throws: StartupError.self) { try blocked.start() }
    blocked.stop()
    #expect(FileManager.default.fileExists(atPath: file))
  }

  @Test("a path that no socket can have is refused")
  func longPath() {
    let path = "/" + String(repeating: "a", count: RuntimePaths.longestSocketPath)
    #expect(throws: StartupError.self) { try ControlServer(plane: FakeControlPlane(), socketPath: path) }
  }
}
