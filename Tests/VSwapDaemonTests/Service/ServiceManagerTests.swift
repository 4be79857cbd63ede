import Foundation
import Testing

@testable import VSwapDaemon

/// Against a socket of the test's, as the service manager has it.
@Suite("Service manager")
struct ServiceManagerTests {
  /// A datagram socket at a path.
  private final class Receiver {
    let path: String
    private let descriptor: Int32

    init(_ path: String) throws {
      self.path = path
      descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_NONBLOCK.rawValue), 0)
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
      let bound = withUnsafePointer(to: address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          bind(descriptor, .init(__sockaddr__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      try #require(bound == 0)
    }

    deinit { close(descriptor) }

    /// The next message, nil if there is none.
    func next() -> String? {
      var bytes = [UInt8](repeating: 0, count: 4096)
      let count = recv(descriptor, &bytes, bytes.count, 0)
      return count < 0 ? nil : String(decoding: bytes.prefix(count), as: UTF8.self)
    }
  }

  private func figures(_ processes: Int, _ mebibytes: Int) -> ServiceManager.Figures {
    ServiceManager.Figures(processes: processes, swappedBytes: mebibytes << 20)
  }

  @Test("it is told when the daemon serves, whom, and how far it is with the end")
  func messages() throws {
    let directory = try ScratchDirectory()
    let receiver = try Receiver("\(directory.path)/notify")
    var manager = try #require(ServiceManager(socket: receiver.path))
    manager.ready()
    #expect(receiver.next() == "READY=1\nSTATUS=Serving nobody")
    let second: UInt64 = 1_000_000_000
    manager.report(figures(1, 3), at: 10 * second)
    #expect(receiver.next() == "STATUS=Serving 1 process, 3.0 MiB swapped")
    manager.report(figures(2, 3), at: 11 * second)  // too soon
    manager.report(figures(1, 3), at: 13 * second)  // nothing new
    #expect(receiver.next() == nil)
    manager.report(figures(2, 4), at: 15 * second)
    #expect(receiver.next() == "STATUS=Serving 2 processes, 4.0 MiB swapped")
    manager.stopping(figures(2, 4))
    #expect(receiver.next() == "STOPPING=1\nSTATUS=Giving 2 processes their pages back, 4.0 MiB to go")
    manager.stopping(figures(2, 1))
    #expect(
      receiver.next()
        == "STOPPING=1\nSTATUS=Giving 2 processes their pages back, 1.0 MiB to go\nEXTEND_TIMEOUT_USEC=60000000")
    manager.stopping(figures(2, 1))  // no progress: the unit's own time counts
    #expect(receiver.next()?.contains("EXTEND") == false)
  }

  @Test(
    "what is no address of a unix socket", arguments: [nil, "", "run/x", "vsock:2:1", "/" + String(repeating: "x", count: 108)])
  func noAddress(socket: String?) {
    #expect(ServiceManager(socket: socket) == nil)
  }

  @Test("a manager that has gone, or does not read, holds nobody up")
  func absent() throws {
    let directory = try ScratchDirectory()
    var manager = try #require(ServiceManager(socket: "\(directory.path)/nobody"))
    manager.ready()
    let receiver = try Receiver("\(directory.path)/notify")
    manager = try #require(ServiceManager(socket: receiver.path))
    // More than its queue holds.
    for _ in 0..<2 { manager.ready() }
    #expect(receiver.next() != nil)
    manager = try #require(ServiceManager(socket: "@vswapd-test-\(getpid())"))
    manager.ready()
  }
}
