import FoundationEssentials
import NIOCore
import NIOEmbedded
import NIOHTTP1
import Testing
import VSwapAPI

@testable import VSwapDaemon

/// What comes by the control socket, from its complete requests on; and what vswapctl reads of the answers.
@Suite("Fuzzing control requests") struct ControlFuzzTests {
  private static let requests = [
    "GET /v1/status", "HEAD /metrics", "GET /v1/areas?x=1", "POST /v1/nothing {}",
    #"POST /v1/evict {"target":"redis-7","bytes":4096}"#, #"POST /v1/evict {"target":7}"#,
    #"POST /v1/evict {"target":"7","bytes":null}"#,
    #"POST /v1/restore {"target":"group-1"}"#, #"POST /v1/limit {"group":"redis-7","limit_bytes":67108864}"#,
    #"POST /v1/limit {"group":"redis-7","limit_bytes":"auto"}"#, #"POST /v1/limit {"group":"redis-7","limit_bytes":null}"#,
    #"POST /v1/pool {"limit_bytes":1073741824}"#, #"POST /v1/detach {"pid":42}"#,
    #"POST /v1/areas {"path":"/var/swap0","size_bytes":8388608,"priority":5}"#, #"POST /v1/areas {"path":"/dev/sdx"}"#,
    #"POST /v1/swapoff {"path":"/var/swap0","dry_run":true}"#, #"POST /v1/swapoff {"all":true}"#,
  ]
  private static let tokens = [
    "{", "}", "[", "]", ":", ",", "\"", "\\u0000", "\\ud800", "null", "true", "false", "\"target\"", "\"bytes\"",
    "\"limit_bytes\"", "\"group\"",
    "\"pid\"", "\"path\"", "\"all\"", "\"priority\"", "\"size_bytes\"", "\"dry_run\"", "/v1/evict", "?", "%00", "\u{0}", "\u{85}",
    "é", "e", "E+", ".",
    "[[[[[[[[[[[[[[[[", "/../",
  ]

  @Test(.timeLimit(.minutes(20))) func requestsAreAnsweredAndWhatIsPassedOnIsInRange() {
    let plane = PickyControlPlane()
    let router = ControlRouter(plane: plane)
    let channel = EmbeddedChannel()
    let accepted = Fuzz.runText("control requests", corpus: Self.requests, tokens: Self.tokens) { input in
      let parts = input.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false).map(String.init)
      let request = ControlRequest(
        method: HTTPMethod(rawValue: parts[0]), uri: parts.count > 1 ? parts[1] : "",
        body: ByteBuffer(string: parts.count > 2 ? parts[2] : ""))
      let response = router.respond(to: request, stream: LineStream(channel: channel, keepAlive: true))
      return response.map { $0.status.code < 300 } ?? true
    }
    #expect(accepted > 0 && plane.wrong.isEmpty, "VSWAP_SEED=\(SeededRandom.seed) \(plane.wrong)")
    _ = try? channel.finish()
  }

  @Test(.timeLimit(.minutes(20))) func configurationsAreReadOrRefused() {
    let accepted = Fuzz.runText(
      "configuration",
      corpus: [
        #"{"runtime_dir": "/run/x", "pool_limit": "2G"}"#, "{}",
        #"{"swap": [{"path": "/swap0", "size": "2G", "priority": 5}, {"path": "/dev/sdx"}]}"#,
      ], tokens: Self.tokens + ["\"runtime_dir\"", "\"pool_limit\"", "\"swap\"", "\"size\"", "\"2G\"", "\"9999999999G\""]
    ) { input in
      do {
        let file = try JSONDecoder().decode(ConfigurationFile.self, from: Data(input.utf8))
        #expect(file.poolLimitBytes.map { $0 >= ByteSize.minimumPoolLimit } ?? true, "VSWAP_SEED=\(SeededRandom.seed) \(input)")
        #expect(file.runtimeDirectory.map { $0.hasPrefix("/") } ?? true, "VSWAP_SEED=\(SeededRandom.seed) \(input)")
        for area in file.swapAreas {
          #expect(
            area.path.hasPrefix("/") && area.sizeBytes.map { $0 >= ByteSize.minimumArea } ?? true,
            "VSWAP_SEED=\(SeededRandom.seed) \(input)")
        }
        return true
      } catch let error as DecodingError {
        return error.explanation.isEmpty
      } catch {
        return false
      }
    }
    #expect(accepted > 0)
  }

  @Test(.timeLimit(.minutes(20))) func answersAreReadOrRefused() throws {
    let encoder = JSONEncoder()
    let lines = [FakeControlPlane.progress("/swap", percent: 50), .error(ControlError(.busy, "busy"))]
    let corpus = [[UInt8](try encoder.encode(FakeControlPlane().status()))] + (try lines.map { [UInt8](try encoder.encode($0)) })
    let accepted = Fuzz.run("answers", corpus: corpus, tokens: Self.tokens, part: 5) { input in
      let data = Data(input)
      if let status = try? JSONDecoder().decode(DaemonStatus.self, from: data) { return !MetricsText.render(status).isEmpty }
      return (try? JSONDecoder().decode(SwapoffLine.self, from: data)) != nil
    }
    #expect(accepted > 0)
  }
}

/// Remembers what a router must not pass on.
private final class PickyControlPlane: ControlPlane, @unchecked Sendable {
  private(set) var wrong: [String] = []
  private let fake = FakeControlPlane()

  private func demand(_ isRight: Bool, _ what: @autoclosure () -> String) {
    if !isRight && wrong.count < 10 { wrong.append(what()) }
  }

  func status() -> DaemonStatus { fake.status() }

  func evict(_ selector: TargetSelector, bytes: Int?) throws(ControlError) -> EvictReply {
    demand(bytes.map { $0 >= 1 } ?? true, "evict \(bytes ?? 0)")
    return EvictReply(evictedPages: 0, evictedBytes: 0)
  }

  func restore(_ selector: TargetSelector) throws(ControlError) -> RestoreReply {
    RestoreReply(restoredPages: 0, restoredBytes: 0)
  }

  func setLimit(group: String, limit: MemoryLimit) throws(ControlError) {
    demand(limit.bytes.map { $0 >= ByteSize.minimumLimit } ?? true, "limit \(limit)")
  }

  func setPoolLimit(bytes: Int) throws(ControlError) { demand(bytes >= ByteSize.minimumPoolLimit, "pool \(bytes)") }

  func detach(pid: Int32) throws(ControlError) -> RestoreReply {
    demand(pid > 0, "detach \(pid)")
    return RestoreReply(restoredPages: 0, restoredBytes: 0)
  }

  func swapon(path: String, sizeBytes: Int?, priority: Int?, discards: Bool) throws(ControlError) -> AreaStatus {
    demand(path.hasPrefix("/") && !path.utf8.contains(0), "swapon \(path)")
    demand(sizeBytes.map { $0 >= ByteSize.minimumArea } ?? true, "swapon \(sizeBytes ?? 0)")
    demand(priority.map { SwapSpecification.priorities.contains($0) } ?? true, "swapon priority \(priority ?? 0)")
    return FakeControlPlane.area
  }

  func swapoff(path: String?, dryRun: Bool, report: (SwapoffLine) -> Bool) throws(ControlError) {
    demand(path.map { $0.hasPrefix("/") && !$0.utf8.contains(0) } ?? true, "swapoff \(path ?? "")")
  }
}
