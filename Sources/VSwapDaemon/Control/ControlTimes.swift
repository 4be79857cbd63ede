import NIOCore

/// How long a client of the control API may take. What it does meanwhile makes no difference: a byte now and then does not
/// keep a connection open.
struct ControlTimes: Sendable {
  /// From the begin of a connection, or the end of a response, until the head of a request is there.
  var head = TimeAmount.seconds(60)
  /// From the head of a request until the rest is there.
  var body = TimeAmount.seconds(10)
  /// Until a response has been taken.
  var response = TimeAmount.seconds(10)
}
