import Glibc
import VSwapAPI

/// The listening socket of the control API in the file system.
struct ControlSocket: Sendable {
  let path: String
  private static let backlog: Int32 = 64

  /// - Throws: ``StartupError`` when `path` is too long.
  init(path: String) throws(StartupError) {
    guard path.utf8.count <= RuntimePaths.longestSocketPath else {
      throw StartupError(
        message:
          "\(path) has more than \(RuntimePaths.longestSocketPath) bytes, the most a socket's name can have; "
          + "choose a shorter runtime directory")
    }
    self.path = path
  }

  /// A listening descriptor, owned by the caller. The file has mode 0600 from the moment it exists: bind(2)
  /// takes the mode of the unbound socket.
  ///
  /// - Throws: ``StartupError``: in use, or not to be made.
  func listen() throws(StartupError) -> Int32 {
    try removeStale()
    let descriptor = socket(AF_UNIX, Self.stream, 0)
    guard descriptor >= 0 else { throw failure("make a socket at") }
    guard fchmod(descriptor, 0o600) == 0, bind(descriptor) == 0, Glibc.listen(descriptor, Self.backlog) == 0
    else {
      let error = failure("listen at")
      close(descriptor)
      throw error
    }
    return descriptor
  }

  /// Removes the file; that it is gone already is no error.
  func remove() {
    unlink(path)
  }

  private static let stream = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)

  /// Removes a socket that nobody listens at.
  private func removeStale() throws(StartupError) {
    var file = stat()
    guard lstat(path, &file) == 0 else { return }
    guard file.st_mode & S_IFMT == S_IFSOCK else {
      throw StartupError(message: "\(path) is in the way and no socket; remove it")
    }
    let probe = socket(AF_UNIX, Self.stream, 0)
    guard probe >= 0 else { throw failure("make a socket at") }
    defer { close(probe) }
    guard withAddress({ connect(probe, $0, $1) }) != 0 else {
      throw StartupError(
        message: "a daemon answers at \(path) already; stop it, or choose another runtime directory")
    }
    guard errno == ECONNREFUSED else { throw failure("ask who listens at") }
    guard unlink(path) == 0 || errno == ENOENT else { throw failure("remove the stale socket") }
  }

  private func bind(_ descriptor: Int32) -> Int32 {
    withAddress { Glibc.bind(descriptor, $0, $1) }
  }

  private func withAddress(_ body: (__CONST_SOCKADDR_ARG, socklen_t) -> Int32) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }  // it fits: `init`
    return withUnsafePointer(to: &address) {
      body(__CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
    }
  }

  /// Reads errno: call it first.
  private func failure(_ doing: String) -> StartupError {
    StartupError(message: "cannot \(doing) \(path): \(String(cString: strerror(errno)))")
  }
}
