import Foundation
import Testing
import VSwapAPI

@testable import VSwapDaemon

@Suite("Control server")
struct ControlServerTests {
  @Test("status has the keys of the contract")
  func statusKeys() throws {
    let served = try ServedPlane()
    let reply = try served.request("GET", "/v1/status")
    #expect(reply.status == 200)
    #expect(reply.head.contains("Content-Type: application/json"))
    let status = try ServedPlane.json(reply.body)
    func keys(_ value: Any?) -> Set<String> { Set((value as? NSDictionary)?.allKeys as? [String] ?? []) }
    func first(_ value: Any?) -> Any? { (value as? NSArray)?.firstObject }

    #expect(
      keys(status) == [
        "version", "pid", "uptime_seconds", "pool", "cache", "zero", "metadata_bytes", "areas", "groups",
        "ended_groups",
      ])
    #expect(
      keys(status["pool"]) == [
        "objects", "original_bytes", "compressed_bytes", "arena_bytes", "limit_bytes", "state",
        "stored_original_bytes", "stored_compressed_bytes", "clean_copies", "reused_copies",
      ])
    #expect(keys(status["cache"]) == ["pages"])
    #expect(keys(status["zero"]) == ["pages"])
    #expect(
      keys(first(status["areas"])) == [
        "path", "type", "size_bytes", "used_bytes", "slots", "priority", "state", "direct", "discard", "read_errors",
        "write_errors",
      ])
    let group = try #require(first(status["groups"]) as? NSDictionary)
    let always: Set = [
      "id", "user", "limit_bytes", "limit_mode", "resident_bytes", "swapped_pages", "state", "targets", "not_held",
      "totals",
    ]
    #expect(keys(group) == always.union(["dictionary"]))
    #expect(keys(group["dictionary"]) == ["bytes", "saves_percent"])
    #expect(
      keys(first(group["targets"])) == [
        "pid", "name", "resident_bytes", "swapped_pages", "evictions", "faults", "refaults", "zero_fills",
        "state",
      ])
    #expect(
      keys(group["totals"]) == [
        "evictions", "faults", "refaults", "zero_fills", "peak_resident_bytes", "peak_swapped_pages",
        "targets",
      ])
    #expect(keys(first(status["ended_groups"])) == always)
    #expect(group["state"] as? String == "over_limit")
    #expect((status["pool"] as? NSDictionary)?["state"] as? String == "full")
    #expect(status["uptime_seconds"] as? Double == 1.5)
  }

  @Test("a status survives the way there and back")
  func statusRoundTrip() throws {
    let served = try ServedPlane()
    let reply = try served.request("GET", "/v1/status")
    #expect(try JSONDecoder().decode(DaemonStatus.self, from: Data(reply.body.utf8)) == served.plane.status())
  }

  @Test("areas are a list, and POST adds one")
  func areas() throws {
    let served = try ServedPlane()
    let list = try served.request("GET", "/v1/areas")
    #expect(list.status == 200)
    #expect(try JSONDecoder().decode([AreaStatus].self, from: Data(list.body.utf8)) == [FakeControlPlane.area])
    let made = try served.request("POST", "/v1/areas", body: #"{"path":"/a b:c","size_bytes":2097152,"priority":7}"#)
    #expect(made.status == 201)
    #expect(try JSONDecoder().decode(AreaStatus.self, from: Data(made.body.utf8)).path == "/a b:c")
    #expect(try served.request("POST", "/v1/areas", body: #"{"path":"/dev/x"}"#).status == 201)
    #expect(served.plane.calls == [.swapon("/a b:c", 2 << 20, 7), .swapon("/dev/x", nil, nil)])
  }

  @Test(
    "commands reach the plane",
    arguments: [
      ("/v1/evict", #"{"target":"7"}"#, FakeControlPlane.Call.evict(.pid(7), nil), "evicted_pages"),
      ("/v1/evict", #"{"target":7,"bytes":4096}"#, .evict(.pid(7), 4096), "evicted_bytes"),
      (
        "/v1/evict?x=y", #"{"target":"redis-7","bytes":null}"#, .evict(.group("redis-7"), nil),
        "evicted_pages"
      ),
      ("/v1/restore", #"{"target":"redis-7"}"#, .restore(.group("redis-7")), "restored_pages"),
      ("/v1/limit", #"{"group":"a","limit_bytes":67108864}"#, .setLimit("a", .fixed(bytes: 67_108_864)), "limit_mode"),
      ("/v1/limit", #"{"group":"a","limit_bytes":"auto"}"#, .setLimit("a", .auto), "limit_mode"),
      ("/v1/limit", #"{"group":"a","limit_bytes":null}"#, .setLimit("a", .none), "limit_bytes"),
      ("/v1/detach", #"{"pid":12}"#, .detach(12), "restored_bytes"),
    ])
  func commands(path: String, body: String, call: FakeControlPlane.Call, key: String) throws {
    let served = try ServedPlane()
    let reply = try served.request("POST", path, body: body)
    #expect(reply.status == 200)
    #expect(served.plane.calls == [call])
    #expect(try ServedPlane.json(reply.body)[key] != nil)
  }

  @Test(
    "bad requests are refused with a reason and never reach the plane",
    arguments: [
      ("/v1/evict", "", "not valid JSON"),
      ("/v1/evict", "{", "not valid JSON"),
      ("/v1/evict", "[]", "must be an object"),
      ("/v1/evict", "{}", "'target' is missing"),
      ("/v1/evict", #"{"target":""}"#, "neither a process id nor a group"),
      ("/v1/evict", #"{"target":"0"}"#, "neither a process id nor a group"),
      ("/v1/evict", #"{"target":"99999999999"}"#, "neither a process id nor a group"),
      ("/v1/evict", #"{"target":[1]}"#, "'target' must be a string"),
      ("/v1/evict", #"{"target":"7","byte":1}"#, "'byte' is not known"),
      ("/v1/evict", #"{"target":"7","bytes":0}"#, "'bytes' must be 1 or more"),
      ("/v1/evict", #"{"target":"7","bytes":-1}"#, "'bytes' must be 1 or more"),
      ("/v1/evict", #"{"target":"7","bytes":1.5}"#, "'bytes' must be a whole number"),
      ("/v1/evict", #"{"target":"7","bytes":1e30}"#, "'bytes' must be a whole number"),
      ("/v1/evict", #"{"target":"7","bytes":"4K"}"#, "'bytes' must be a whole number"),
      ("/v1/limit", #"{"group":"a"}"#, "'limit_bytes' is missing"),
      ("/v1/limit", #"{"group":"a","limit_bytes":0}"#, "'limit_bytes' must be at least 4194304"),
      ("/v1/limit", #"{"group":"a","limit_bytes":"64M"}"#, "'limit_bytes' must be a whole number, \"auto\", or null"),
      ("/v1/limit", #"{"group":"a","limit_bytes":1.5}"#, "'limit_bytes' must be a whole number"),
      ("/v1/limit", #"{"group":7,"limit_bytes":null}"#, "'group' must be a string"),
      ("/v1/detach", #"{"pid":"7"}"#, "'pid' must be a whole number"),
      ("/v1/detach", #"{"pid":-7}"#, "'pid' must be a process id"),
      ("/v1/detach", #"{"pid":4294967296}"#, "'pid' must be a whole number"),
      ("/v1/areas", "{}", "'path' is missing"),
      ("/v1/areas", #"{"path":"swap0"}"#, "'path' must be an absolute path"),
      ("/v1/areas", #"{"path":"/a\u0000b"}"#, "'path' must be an absolute path"),
      ("/v1/areas", #"{"path":"/a","size":"2M"}"#, "'size' is not known"),
      ("/v1/areas", #"{"path":"/a","size_bytes":1048576}"#, "'size_bytes' must be at least 2097152"),
      ("/v1/areas", #"{"path":"/a","priority":-1}"#, "'priority' must be a whole number from 0 to 32767"),
      ("/v1/areas", #"{"path":"/a","priority":32768}"#, "'priority' must be a whole number from 0 to 32767"),
      ("/v1/swapoff", "{}", "'path' is missing"),
      ("/v1/swapoff", #"{"all":false}"#, "'path' is missing"),
      ("/v1/swapoff", #"{"all":1}"#, "'all' must be true or false"),
      ("/v1/swapoff", #"{"all":true,"path":"/a"}"#, "'all' and 'path' exclude one another"),
      ("/v1/swapoff", #"{"path":"a"}"#, "'path' must be an absolute path"),
    ])
  func badRequests(path: String, body: String, reason: String) throws {
    let served = try ServedPlane()
    let reply = try served.request("POST", path, body: body)
    #expect(reply.status == 400)
    let error = try #require(ServedPlane.json(reply.body)["error"] as? NSDictionary)
    #expect(error["code"] as? String == "bad_request")
    #expect((error["message"] as? String)?.contains(reason) == true, "\(reply.body)")
    #expect(served.plane.calls.isEmpty)
  }

  @Test("errors of the plane keep their code and get its status", arguments: ControlError.Code.allCases)
  func planeErrors(code: ControlError.Code) throws {
    let served = try ServedPlane(FakeControlPlane(refusal: ControlError(code, "because")))
    let reply = try served.request("POST", "/v1/detach", body: #"{"pid":1}"#)
    #expect(reply.status == code.httpStatus)
    let error = try JSONDecoder().decode(ErrorReply.self, from: Data(reply.body.utf8)).error
    #expect(error == ControlError(code, "because"))
  }

  @Test("what is not there is 404, the wrong method 405 with the right one")
  func routes() throws {
    let served = try ServedPlane()
    for path in ["/", "/v1", "/v1/status/", "/v2/status", "/v1/swapon", "*"] {
      let reply = try served.request("GET", path)
      #expect(reply.status == 404)
      #expect(reply.body.contains(#""code":"not_found""#))
    }
    let wrong = try served.request("POST", "/v1/status", body: "{}")
    #expect(wrong.status == 405)
    #expect(wrong.head.contains("Allow: GET, HEAD"))
    #expect(wrong.body.contains(#""code":"method_not_allowed""#))
    #expect(try served.request("GET", "/v1/evict").head.contains("Allow: POST"))
    #expect(try served.request("DELETE", "/v1/areas").head.contains("Allow: GET, HEAD, POST"))
    #expect(try served.request("GET", "/v1/swapoff").body.contains("/v1/swapoff takes POST, not GET"))
  }

  @Test("HEAD has the head alone")
  func head() throws {
    let reply = try ServedPlane().request("HEAD", "/v1/status")
    #expect(reply.status == 200)
    #expect(reply.head.contains("Content-Length: "))
    #expect(reply.body.isEmpty)
  }
}
