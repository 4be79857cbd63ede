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
    // Targets of other users must reach attach.sock, whatever umask the daemon was started with.
    if wasMade && chmod(path, 0o755) != 0 { throw Self.unusable(path, KernelError.last("chmod")) }
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
    removePreloadLinks()
    unlink("\(path)/vswapd.lock")
    if wasMade || always { rmdir(path) }
    close(lockDescriptor)
  }

  /// What `vswapctl run` made for libraries whose own paths LD_PRELOAD cannot name.
  private func removePreloadLinks() {
    guard let entries = opendir(path) else { return }
    defer { closedir(entries) }
    while let entry = readdir(entries) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: Int(NAME_MAX) + 1) { String(cString: $0) }
      }
      guard name.hasPrefix(RuntimePaths.preloadPrefix) else { continue }
      unlink("\(path)/\(name)/\(RuntimePaths.libraryName)")
      rmdir("\(path)/\(name)")
    }
  }
}
