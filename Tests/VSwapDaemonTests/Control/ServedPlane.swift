import Foundation
import Testing

@testable import VSwapDaemon

/// A control server on a socket of its own, and a client that sends it what it likes.
final class ServedPlane {
  let directory: ScratchDirectory
  let plane: FakeControlPlane
  let socketPath: String
  private let server: ControlServer

  init(_ plane: FakeControlPlane = FakeControlPlane(), times: ControlTimes = ControlTimes()) throws {
    directory = try ScratchDirectory()
    self.plane = plane
    socketPath = "\(directory.path)/control.sock"
    server = try ControlServer(plane: plane, socketPath: socketPath, times: times)
    try server.start()
  }

  deinit {
    server.stop()
  }

  func stop() {
    server.stop()
  }

  /// Everything the server says to `bytes`, until it closes the connection.
  func exchange(_ bytes: some Sequence<UInt8>) throws -> String {
    let descriptor = try connect()
    defer { close(descriptor) }
    let bytes = Array(bytes)
    var sent = 0
    while sent < bytes.count {
      let count = bytes.withUnsafeBytes {
        send(descriptor, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
      }
      if count < 0 { break }  // it has heard enough; what it says to that is to be read
      sent += count
    }
    var reply: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      var readable = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      try #require(poll(&readable, 1, Self.patience) == 1, "no answer within \(Self.patience) ms, after \(reply.count) bytes")
      let count = read(descriptor, &chunk, chunk.count)
      // What the server was sent in vain goes with the connection; its reply came before that.
      if count < 0 { try #require(errno == ECONNRESET) }
      guard count > 0 else { break }
      reply += chunk[..<count]
    }
    return String(decoding: reply, as: UTF8.self)
  }

  /// Sends one request and returns the status and the body of the response.
  func request(
    _ method: String, _ path: String, body: String? = nil, headers: [String] = []
  ) throws -> (status: Int, head: String, body: String) {
    var lines = ["\(method) \(path) HTTP/1.1", "Host: localhost", "Connection: close"] + headers
    if let body { lines.append("Content-Length: \(body.utf8.count)") }
    return try Self.split(exchange((lines.joined(separator: "\r\n") + "\r\n\r\n" + (body ?? "")).utf8))
  }

  static func split(_ reply: String) throws -> (status: Int, head: String, body: String) {
    let end = try #require(reply.range(of: "\r\n\r\n"), "no response: \(reply)")
    let head = String(reply[..<end.lowerBound])
    let status = try #require(Int(head.dropFirst("HTTP/1.1 ".count).prefix(3)))
    return (status, head, String(reply[end.upperBound...]))
  }

  /// The content of a body in chunks.
  static func unchunked(_ body: String) throws -> String {
    var (rest, content) = (Substring(body), "")
    while true {
      let end = try #require(rest.range(of: "\r\n"), "no chunk: \(rest.prefix(100))")
      let size = try #require(Int(rest[..<end.lowerBound], radix: 16))
      guard size > 0 else { return content }
      let chunk = rest[end.upperBound...]
      content += String(decoding: chunk.utf8.prefix(size), as: UTF8.self)
      rest = Substring(chunk.utf8.dropFirst(size + 2))
    }
  }

  /// The value of a JSON text.
  static func json(_ text: String) throws -> NSDictionary {
    try #require(JSONSerialization.jsonObject(with: Data(text.utf8)) as? NSDictionary)
  }

  /// A connection that says nothing.
  func connection() throws -> FileHandle {
    FileHandle(fileDescriptor: try connect(), closeOnDealloc: true)
  }

  /// Milliseconds that an answer may take before the server counts as hanging.
  private static let patience: Int32 = 60_000

  /// A connected socket. It must not have a time limit of its own: calls on such a socket end with EINTR, without any signal, when io_uring
  /// completes something for this thread that another test began.
  private func connect() throws -> Int32 {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: socketPath.utf8) }
    let result = withUnsafePointer(to: &address) {
      Glibc.connect(
        descriptor, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
    }
    try #require(result == 0)
    return descriptor
  }
}
