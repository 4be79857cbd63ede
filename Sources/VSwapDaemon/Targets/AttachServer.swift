import CUserfault
import Glibc
import Synchronization

/// Listens on attach.sock. Each connection gets a thread when its user has one to spare: for the handshake first, for its pager then.
final class AttachServer: @unchecked Sendable {
  private let handshake: Handshake
  private let queue: HandshakeQueue
  private let socket: Int32
  private let isStopped = Atomic(false)
  private let log: @Sendable (String) -> Void
  /// The errno of accept(2) that was logged last. Of the accepting thread.
  private var toldError: Int32 = 0

  /// Those who may not attach by themselves share the turns of one user.
  private static let strangers = UInt32.max

  /// - Parameter path: must not exist. Anybody may connect where the policy lets others than the daemon's user attach: it is the handshake that
  ///   finds out who may, and says so to who may not.
  init(
    path: String, handshake: Handshake, queue: HandshakeQueue, log: @escaping @Sendable (String) -> Void
  ) throws(KernelError) {
    self.handshake = handshake
    self.queue = queue
    self.log = log
    socket = vs_seqpacket_listen(path, handshake.policy.isForOthers ? 0o666 : 0o600)
    guard socket >= 0 else { throw KernelError(call: "bind", code: -socket) }
    // For whoever looks at it.
    if let group = handshake.policy.group { _ = chown(path, .max, group.id) }
  }

  func start() throws(KernelError) {
    try Thread.start("vswap-attach") { [self] in
      let reserve = handshake.chunks.descriptors
      while true {
        // A connection that nobody has answered is nothing but a descriptor: what forks may need comes first.
        reserve.refill()
        guard reserve.isWhole else {
          pause()
          continue
        }
        let connection = vs_accept(socket)
        if isStopped.load(ordering: .acquiring) {
          if connection >= 0 { close(connection) }
          return
        }
        if connection >= 0 { admit(connection) } else { recover(from: -connection) }
      }
    }
  }

  /// Nothing that accept(2) says ends the service: the socket stays, so it works again some time. Whoever waits goes on waiting; out
  /// of descriptors, targets that end make room.
  private func recover(from code: Int32) {
    guard code != EINTR && code != ECONNABORTED else { return }
    if code != toldError { log("targets cannot be accepted for now: \(KernelError(call: "accept", code: code))") }
    toldError = code
    pause()
  }

  private func pause() {
    var none = pollfd(fd: -1, events: 0, revents: 0)
    _ = poll(&none, 1, 20)
  }

  /// Nobody is accepted any more. Those who are here go on being served.
  func stop() {
    isStopped.store(true, ordering: .releasing)
    shutdown(socket, Int32(SHUT_RDWR))
  }

  private func admit(_ connection: Int32) {
    var peer = vs_peer()
    let status = vs_peer_of(connection, &peer)
    guard status == 0 else {
      close(connection)
      return recover(from: -status)
    }
    let user = handshake.policy.allows(peer, on: connection) ? peer.uid : Self.strangers
    switch queue.admit(connection, of: user) {
    case .begin: begin(connection, of: user)
    case .wait: break
    case .refused:
      handshake.refuse(connection, "too many programs are being attached for user \(peer.uid); try again")
    }
  }

  /// Starts the handshake of this connection, or, if there is no thread to be had, of the next one of that user.
  private func begin(_ connection: Int32, of user: UInt32) {
    var candidate: Int32? = connection
    while let connection = candidate {
      do {
        try Thread.start("vswap-pager") { [self] in run(connection, of: user) }
        return
      } catch {
        log("a target was turned away: \(error)")
        close(connection)
      }
      candidate = queue.next(afterOneOf: user)
    }
  }

  private func run(_ connection: Int32, of user: UInt32) {
    var peer = vs_peer()
    _ = vs_peer_of(connection, &peer)  // it was there when the connection was admitted
    handshake.run(connection, from: peer) {
      if let next = queue.next(afterOneOf: user) { begin(next, of: user) }
    }
  }
}
