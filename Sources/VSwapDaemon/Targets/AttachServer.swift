import CUserfault
import Glibc
import Synchronization

/// Listens on attach.sock. Each connection gets a thread: for the handshake first, for its pager then.
final class AttachServer: @unchecked Sendable {
  private let handshake: Handshake
  private let socket: Int32
  private let isStopped = Atomic(false)
  private let log: @Sendable (String) -> Void

  /// - Parameter path: must not exist; anybody may connect, since a target of any user is welcome to hurt itself only.
  init(path: String, handshake: Handshake, mode: mode_t, log: @escaping @Sendable (String) -> Void) throws(KernelError) {
    self.handshake = handshake
    self.log = log
    socket = vs_seqpacket_listen(path, mode)
    guard socket >= 0 else { throw KernelError(call: "bind", code: -socket) }
  }

  func start() throws(KernelError) {
    try Thread.start("vswap-attach") { [self] in accept() }
  }

  /// Nobody is accepted any more. Those who are here go on being served.
  func stop() {
    isStopped.store(true, ordering: .releasing)
    shutdown(socket, Int32(SHUT_RDWR))
  }

  private func accept() {
    while true {
      let connection = vs_accept(socket, Self.handshakeSeconds)
      if isStopped.load(ordering: .acquiring) {
        if connection >= 0 { close(connection) }
        return
      }
      if connection >= 0 {
        serve(connection)
      } else if connection == -EMFILE || connection == -ENFILE || connection == -ENOMEM {
        // Whoever waits goes on waiting; targets that end make room.
        var none = pollfd(fd: -1, events: 0, revents: 0)
        _ = poll(&none, 1, 20)
      } else if connection != -EINTR && connection != -ECONNABORTED {
        log("accepting targets failed: \(KernelError(call: "accept", code: -connection))")
        return
      }
    }
  }

  private func serve(_ connection: Int32) {
    let handshake = self.handshake
    do {
      try Thread.start("vswap-pager") { handshake.run(connection) }
    } catch {
      log("a target was turned away: \(error)")
      close(connection)
    }
  }

  /// Longest wait for a message of the handshake.
  private static let handshakeSeconds: Int32 = 10
}
