import FoundationEssentials
import NIOCore
import NIOHTTP1
import VSwapAPI

/// One request, complete.
struct ControlRequest: Sendable {
  var method: HTTPMethod
  /// With the query, as in the request line.
  var uri: String
  var body: ByteBuffer
}

/// One response, complete.
struct ControlResponse: Sendable {
  var status: HTTPResponseStatus
  var contentType = "application/json"
  /// The methods that exist, for a response that says that this one does not.
  var allow: String?
  var body: ByteBuffer
}

/// Turns requests into calls of the control plane, and what they return into responses. Blocks while the call
/// does.
struct ControlRouter: Sendable {
  let plane: any ControlPlane
  /// Requests that stream, each of which keeps a worker thread for as long as it takes.
  private let streaming = RequestCount()
  /// So that the other workers answer everybody else.
  private static let mostStreaming = 2

  init(plane: any ControlPlane) {
    self.plane = plane
  }

  /// Never fails: what goes wrong is a response too. Nil when the response went into `stream`.
  func respond(to request: ControlRequest, stream: LineStream) -> ControlResponse? {
    do throws(ControlError) {
      return try dispatch(request, stream)
    } catch {
      guard !stream.hasBegun else {
        _ = stream.send(Self.encode(SwapoffLine.error(error)), isDroppable: false)
        return nil
      }
      return Self.response(for: error, allow: error.code == .methodNotAllowed ? allowed(request) : nil)
    }
  }

  /// The response that carries `error`.
  static func response(for error: ControlError, allow: String? = nil) -> ControlResponse {
    ControlResponse(
      status: HTTPResponseStatus(statusCode: error.code.httpStatus), allow: allow,
      body: encode(ErrorReply(error: error)))
  }

  private enum Route: String {
    case status = "/v1/status"
    case areas = "/v1/areas"
    case evict = "/v1/evict"
    case restore = "/v1/restore"
    case limit = "/v1/limit"
    case pool = "/v1/pool"
    case detach = "/v1/detach"
    case swapoff = "/v1/swapoff"
    case metrics = "/metrics"

    /// HEAD goes with GET.
    var methods: [HTTPMethod] {
      switch self {
      case .status, .metrics: [.GET, .HEAD]
      case .areas: [.GET, .HEAD, .POST]
      case .evict, .restore, .limit, .pool, .detach, .swapoff: [.POST]
      }
    }
  }

  private func route(_ request: ControlRequest) -> Route? {
    Route(rawValue: String(request.uri.prefix { $0 != "?" }))
  }

  /// Whether answering waits for nobody: no target, no disk.
  func isQuick(_ request: ControlRequest) -> Bool {
    switch route(request) {
    case .status, .metrics, .limit, nil: true
    case .areas: request.method != .POST
    case .evict, .restore, .pool, .detach, .swapoff: false
    }
  }

  private func allowed(_ request: ControlRequest) -> String? {
    route(request).map { $0.methods.map(\.rawValue).joined(separator: ", ") }
  }

  private func dispatch(_ request: ControlRequest, _ stream: LineStream) throws(ControlError) -> ControlResponse? {
    guard let route = route(request) else {
      throw ControlError(.notFound, "there is no \(request.uri.prefix(100)) here; see GET /v1/status")
    }
    guard route.methods.contains(request.method) else {
      let known = route.methods.filter { $0 != .HEAD }.map(\.rawValue).joined(separator: " and ")
      throw ControlError(.methodNotAllowed, "\(route.rawValue) takes \(known), not \(request.method.rawValue)")
    }
    return switch route {
    case .status: Self.success(plane.status())
    case .areas where request.method == .POST: Self.success(try swapon(request), status: .created)
    case .areas: Self.success(plane.status().areas)
    case .metrics:
      ControlResponse(
        status: .ok, contentType: "text/plain; version=0.0.4; charset=utf-8",
        body: ByteBuffer(string: MetricsText.render(plane.status())))
    case .evict: Self.success(try evict(request))
    case .restore: Self.success(try restore(request))
    case .limit: Self.success(try limit(request))
    case .pool: Self.success(try pool(request))
    case .detach: Self.success(try plane.detach(pid: decode(DetachRequest.self, request).pid))
    case .swapoff: try swapoff(request, stream)
    }
  }

  private func evict(_ request: ControlRequest) throws(ControlError) -> EvictReply {
    let order = try decode(EvictRequest.self, request)
    return try plane.evict(selector(order.target), bytes: order.bytes)
  }

  private func restore(_ request: ControlRequest) throws(ControlError) -> RestoreReply {
    try plane.restore(selector(decode(RestoreRequest.self, request).target))
  }

  private func limit(_ request: ControlRequest) throws(ControlError) -> LimitReply {
    let order = try decode(LimitRequest.self, request)
    try plane.setLimit(group: order.group, limit: order.limit)
    return LimitReply(group: order.group, limit: order.limit)
  }

  private func pool(_ request: ControlRequest) throws(ControlError) -> PoolLimit {
    let order = try decode(PoolLimit.self, request)
    try plane.setPoolLimit(bytes: order.limitBytes)
    return order
  }

  private func swapon(_ request: ControlRequest) throws(ControlError) -> AreaStatus {
    let order = try decode(SwaponRequest.self, request)
    return try plane.swapon(
      path: order.path, sizeBytes: order.sizeBytes, priority: order.priority, discards: order.discards)
  }

  /// Returns nil, when everything has been said.
  private func swapoff(_ request: ControlRequest, _ stream: LineStream) throws(ControlError) -> ControlResponse? {
    let order = try decode(SwapoffRequest.self, request)
    // Who went away cancels, also before a thread had time to begin; other requests may have been answered meanwhile.
    guard stream.hasClient else { return nil }
    defer { streaming.add(-1) }
    guard streaming.add(1) <= Self.mostStreaming else {
      throw ControlError(.busy, "\(Self.mostStreaming) swapoffs are under way already; wait for one of them")
    }
    try plane.swapoff(path: order.path, dryRun: order.dryRun) { line in
      if case .progress = line { return stream.send(Self.encode(line), isDroppable: true) }
      return stream.send(Self.encode(line), isDroppable: false)
    }
    stream.begin()  // there may have been no area
    return nil
  }

  private func selector(_ name: TargetName) throws(ControlError) -> TargetSelector {
    guard let selector = TargetSelector(name.text) else {
      throw ControlError(.badRequest, "'\(name.text.prefix(100))' is neither a process id nor a group")
    }
    return selector
  }

  private func decode<T: Decodable>(_ type: T.Type, _ request: ControlRequest) throws(ControlError) -> T {
    do {
      return try JSONDecoder().decode(type, from: Data(request.body.readableBytesView))
    } catch let error as DecodingError {
      throw ControlError(.badRequest, "the request's body: \(error.explanation)")
    } catch {
      throw ControlError(.badRequest, "the request's body: it is not valid JSON")
    }
  }

  private static func success(
    _ reply: some Encodable, status: HTTPResponseStatus = .ok
  ) -> ControlResponse {
    ControlResponse(status: status, body: encode(reply))
  }

  private static func encode(_ value: some Encodable) -> ByteBuffer {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    do {
      var body = ByteBuffer(bytes: try encoder.encode(value))
      body.writeInteger(UInt8(ascii: "\n"))
      return body
    } catch {
      preconditionFailure("a reply that JSON cannot express: \(error)")  // infinities: none is computed
    }
  }
}
