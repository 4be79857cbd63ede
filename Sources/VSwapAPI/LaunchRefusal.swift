/// Why `vswapctl run` did not start its command.
public struct LaunchRefusal: Error, Equatable, Sendable {
  /// The exit statuses that env(1), timeout(1) and shells use.
  public enum Status: Int32, Sendable {
    /// `run` itself failed: wrong options, no daemon, a program that cannot be attached.
    case notAttachable = 125
    /// The command was found and cannot be executed.
    case notExecutable = 126
    /// There is no such command.
    case notFound = 127
  }

  public let status: Status
  /// One line: what is wrong and what to do.
  public let message: String

  public init(_ status: Status, _ message: String) {
    self.status = status
    self.message = message
  }
}
