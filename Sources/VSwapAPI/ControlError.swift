/// Why the daemon did not do what it was asked, as it travels over the control API:
/// `{"error": {"code": "not_found", "message": "..."}}`.
public struct ControlError: Error, Equatable, Sendable {
  public enum Code: String, Codable, CaseIterable, Sendable {
    /// The request makes no sense: malformed JSON, a wrong value, an unknown key.
    case badRequest = "bad_request"
    /// No such target, group or path.
    case notFound = "not_found"
    /// The path exists, the method does not.
    case methodNotAllowed = "method_not_allowed"
    /// The head or the body of the request is over the server's limit.
    case tooLarge = "too_large"
    /// Something else is being done to the same target; ask again.
    case busy
    /// It makes sense, and the present state rules it out: no room to restore, pages that cannot move.
    case notPossible = "not_possible"
    /// It was tried and went wrong.
    case failed
    /// The target did not answer in time.
    case timeout
    /// The daemon is on its way out, or has too many connections.
    case unavailable

    /// The HTTP status that goes with the code.
    public var httpStatus: Int {
      switch self {
      case .badRequest: 400
      case .notFound: 404
      case .methodNotAllowed: 405
      case .busy, .notPossible: 409
      case .tooLarge: 413
      case .failed: 500
      case .unavailable: 503
      case .timeout: 504
      }
    }
  }

  public let code: Code
  /// One line for a person: what is wrong and, where there is something, what to do.
  public let message: String

  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
}

/// The body of every response that is not a success.
public struct ErrorReply: Codable, Sendable {
  public let error: ControlError

  public init(error: ControlError) {
    self.error = error
  }
}

extension ControlError: Codable {
  enum CodingKeys: String, CodingKey {
    case code, message
  }

  /// A code that a newer daemon made up reads as ``Code/failed``: the message is what counts.
  public init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: CodingKeys.self)
    code = Code(rawValue: try fields.decode(String.self, forKey: .code)) ?? .failed
    message = try fields.decode(String.self, forKey: .message)
  }
}
