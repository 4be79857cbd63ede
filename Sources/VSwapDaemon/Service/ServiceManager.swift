import Glibc
import VSwapAPI

/// The service manager that started this daemon as a unit of Type=notify: the protocol of sd_notify(3), one datagram of
/// NAME=value lines per message. Main thread only.
struct ServiceManager {
  /// What `systemctl status` is to say.
  struct Figures: Equatable {
    /// Targets, and children of theirs without an agent.
    var processes: Int
    var swappedBytes: Int
  }

  private let descriptor: Int32
  private let address: sockaddr_un
  private let addressLength: socklen_t
  private var last: Figures?
  private var lastTime: UInt64 = 0

  /// Nanoseconds between two messages that only bring figures.
  static let interval: UInt64 = 2_000_000_000
  /// How much time a daemon that makes progress asks for while it stops, in microseconds.
  private static let addedTime = 60_000_000
  /// How long a message may take, in seconds: a manager that does not read must not hold up the daemon.
  private static let patience = 1

  /// nil where `socket`, the value of NOTIFY_SOCKET, is missing or no address of a unix socket, or where there is no
  /// descriptor for it.
  init?(socket: String?) {
    guard let socket, let (address, length) = Self.address(socket) else { return nil }
    let descriptor = Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return nil }
    var time = timeval(tv_sec: Self.patience, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    self.descriptor = descriptor
    self.address = address
    addressLength = length
  }

  /// A path, or the name of an abstract socket behind an "@".
  private static func address(_ name: String) -> (sockaddr_un, socklen_t)? {
    let isAbstract = name.hasPrefix("@")
    guard isAbstract || name.hasPrefix("/"), name.utf8.count <= RuntimePaths.longestSocketPath else { return nil }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { path in
      path.copyBytes(from: name.utf8)
      if isAbstract { path[0] = 0 }
    }
    let path = MemoryLayout<sockaddr_un>.offset(of: \.sun_path)! + name.utf8.count  // a stored property has an offset
    return (address, socklen_t(isAbstract ? path : path + 1))
  }

  // MARK: - Messages

  /// Targets can attach.
  mutating func ready() {
    send("READY=1\nSTATUS=\(Self.text(Figures(processes: 0, swappedBytes: 0)))")
  }

  /// The figures, if they have changed and the last message is not from just now.
  ///
  /// - Parameter now: CLOCK_MONOTONIC in nanoseconds.
  mutating func report(_ figures: Figures, at now: UInt64) {
    guard isDue(at: now) else { return }
    lastTime = now
    guard figures != last else { return }
    last = figures
    send("STATUS=\(Self.text(figures))")
  }

  func isDue(at now: UInt64) -> Bool {
    now >= lastTime + Self.interval
  }

  /// The daemon has begun to give pages back. As long as they become fewer it asks for more time than the unit has.
  mutating func stopping(_ figures: Figures) {
    var message = "STOPPING=1\nSTATUS=Giving \(Self.processes(figures)) their pages back, "
    message += "\(ByteSize.format(figures.swappedBytes)) to go"
    if let last, figures != last { message += "\nEXTEND_TIMEOUT_USEC=\(Self.addedTime)" }
    last = figures
    send(message)
  }

  private static func text(_ figures: Figures) -> String {
    figures.processes == 0
      ? "Serving nobody" : "Serving \(processes(figures)), \(ByteSize.format(figures.swappedBytes)) swapped"
  }

  private static func processes(_ figures: Figures) -> String {
    figures.processes == 1 ? "1 process" : "\(figures.processes) processes"
  }

  /// A message that cannot be sent is lost: the daemon serves without.
  private func send(_ message: String) {
    let bytes = Array(message.utf8)
    _ = withUnsafePointer(to: address) { address in
      address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        sendto(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL), .init(__sockaddr__: $0), addressLength)
      }
    }
  }
}
