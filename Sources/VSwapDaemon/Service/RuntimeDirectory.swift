import CUserfault
import Glibc
import VSwapAPI

/// The directory with the sockets, held by a lock as long as the daemon lives.
struct RuntimeDirectory {
  let path: String
  private let lockDescriptor: Int32
  private let wasMade: Bool

  /// Makes the directory where it is missing, takes the lock, and removes sockets that a dead daemon left.
  init(path: String) throws(StartupError) {
    self.path = path
    let socket = RuntimePaths.controlSocket(in: path)
    guard socket.utf8.count <= RuntimePaths.longestSocketPath else {
      throw StartupError(message: "\(path) is too long for a socket's path; choose a shorter one with --runtime-dir")
    }
    wasMade = mkdir(path, 0o755) == 0
    if !wasMade && errno != EEXIST { throw Self.unusable(path, KernelError.last("mkdir")) }
    lockDescriptor = open("\(path)/vswapd.lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard lockDescriptor >= 0 else { throw Self.unusable(path, KernelError.last("open")) }
    guard flock(lockDescriptor, LOCK_EX | LOCK_NB) == 0 else {
      let busy = errno == EWOULDBLOCK
      close(lockDescriptor)
      throw busy
        ? StartupError(message: "another vswapd serves \(path); use it, or choose another --runtime-dir")
        : Self.unusable(path, KernelError.last("flock"))
    }
    for stale in [socket, RuntimePaths.attachSocket(in: path)] where unlink(stale) != 0 && errno != ENOENT {
      throw Self.unusable(stale, KernelError.last("unlink"))
    }
  }

  private static func unusable(_ path: String, _ error: KernelError) -> StartupError {
    StartupError(message: "\(path) cannot be used (\(error)); check it, or choose another --runtime-dir")
  }

  /// Removes what the daemon put there, and the directory itself if the daemon made it or `always` is set.
  func remove(always: Bool) {
    unlink(RuntimePaths.controlSocket(in: path))
    unlink(RuntimePaths.attachSocket(in: path))
    unlink("\(path)/vswapd.lock")
    if wasMade || always { rmdir(path) }
    close(lockDescriptor)
  }
}
