import NIOCore

/// The open connections of the control API. When there are as many as there may be, the one that has been without a request
/// for longest makes room for a new one: so neither idle clients nor slow ones lock anybody out.
///
/// Belongs to the event loop: every call is made there.
final class ControlConnections: @unchecked Sendable {
  private struct Connection {
    let channel: any Channel
    /// A worker has its request.
    var isAnswering = false
  }

  private let most: Int
  /// In the order in which they came, or had their last request answered.
  private var connections: [Connection] = []

  init(most: Int) {
    self.most = most
  }

  /// Takes a new connection. false: all others wait for the answer to a request.
  func add(_ channel: any Channel) -> Bool {
    if connections.count >= most {
      guard let place = connections.firstIndex(where: { !$0.isAnswering }) else { return false }
      connections.remove(at: place).channel.close(promise: nil)
    }
    connections.append(Connection(channel: channel))
    return true
  }

  func remove(_ channel: any Channel) {
    connections.removeAll { $0.channel === channel }
  }

  /// Its request has gone to a worker, or has been answered.
  func set(_ channel: any Channel, answering: Bool) {
    guard let place = connections.firstIndex(where: { $0.channel === channel }) else { return }
    var connection = connections.remove(at: place)
    connection.isAnswering = answering
    connections.append(connection)
  }
}
