/// Why the daemon cannot start: one line, "what is wrong; what to do".
public struct StartupError: Error, Equatable, Sendable {
  public let message: String

  public init(message: String) {
    self.message = message
  }
}
