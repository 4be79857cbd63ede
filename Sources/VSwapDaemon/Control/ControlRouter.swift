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

  /// Never fails: what goes wrong is a response too.
  func respond(to request: ControlRequest) -> ControlResponse {
    do throws(ControlError) {
      return try dispatch(request)
    } catch {
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
    case detach = "/v1/detach"
    case metrics = "/metrics"

    var method: HTTPMethod {
      switch self {
      case .status, .areas, .metrics: .GET
      case .evict, .restore, .limit, .detach: .POST
      }
    }
  }

  private func route(_ request: ControlRequest) -> Route? {
    Route(rawValue: String(request.uri.prefix { $0 != "?" }))
  }

  private func allowed(_ request: ControlRequest) -> String? {
    route(request).map { $0.method == .GET ? "GET, HEAD" : $0.method.rawValue }
  }

  private func dispatch(_ request: ControlRequest) throws(ControlError) -> ControlResponse {
    guard let route = route(request) else {
      throw ControlError(.notFound, "there is no \(request.uri.prefix(100)) here; see GET /v1/status")
    }
    let method = request.method == .HEAD ? .GET : request.method
    guard method == route.method else {
      throw ControlError(
        .methodNotAllowed, "\(route.rawValue) takes \(route.method.rawValue), not \(request.method.rawValue)")
    }
    return switch route {
    case .status: Self.success(plane.status())
    case .areas: Self.success(plane.status().areas)
    case .metrics:
      ControlResponse(
        status: .ok, contentType: "text/plain; version=0.0.4; charset=utf-8",
        body: ByteBuffer(string: MetricsText.render(plane.status())))
    case .evict: Self.success(try evict(request))
    case .restore: Self.success(try restore(request))
    case .limit: Self.success(try limit(request))
    case .detach: Self.success(try plane.detach(pid: decode(DetachRequest.self, request).pid))
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
    try plane.setLimit(group: order.group, limitBytes: order.limitBytes)
    return LimitReply(group: order.group, limitBytes: order.limitBytes ?? 0)
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

  private static func success(_ reply: some Encodable) -> ControlResponse {
    ControlResponse(status: .ok, body: encode(reply))
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
