import Synchronization

/// How many requests of a kind are under way. Any thread.
final class RequestCount: Sendable {
  private let underWay = Atomic(0)

  /// Adds `change` and returns the new count.
  @discardableResult
  func add(_ change: Int) -> Int {
    underWay.wrappingAdd(change, ordering: .relaxed).newValue
  }
}
