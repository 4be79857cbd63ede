import Synchronization

/// How many connections are open. Any thread.
final class ConnectionCount: Sendable {
  private let open = Atomic(0)

  /// Adds `change` and returns the new count.
  @discardableResult
  func add(_ change: Int) -> Int {
    open.wrappingAdd(change, ordering: .relaxed).newValue
  }
}
