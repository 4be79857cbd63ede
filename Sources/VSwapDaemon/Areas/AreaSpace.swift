import Glibc

/// The room that a file takes on its file system.
enum AreaSpace {
  /// Gives a file all of its `bytes` blocks, of which it has `allocated` bytes already, so that no later write can lack one. Asks
  /// for room first: a size that cannot be had costs nothing.
  static func reserve(_ descriptor: Int32, bytes: Int, allocated: Int) throws(AreaFileError) {
    try check(free(descriptor), for: bytes - allocated)
    var code: Int32
    repeat { code = fallocate(descriptor, 0, 0, bytes) == 0 ? 0 : errno } while code == EINTR
    // A file system that cannot do it gets every block written, which takes a while.
    if code == EOPNOTSUPP { code = posix_fallocate(descriptor, 0, bytes) }
    if code == ENOSPC { throw .noSpace(needed: bytes - allocated, free: try free(descriptor)) }
    guard code == 0 else { throw .system(KernelError(call: "fallocate", code: code)) }
  }

  /// Refuses `bytes` that the file system of `directory` does not have.
  static func check(directory: String, for bytes: Int) throws(AreaFileError) {
    var facts = statvfs()
    guard statvfs(directory, &facts) == 0 else { throw .last("statvfs") }
    try check(free(facts), for: bytes)
  }

  private static func check(_ free: Int, for bytes: Int) throws(AreaFileError) {
    guard bytes <= free else { throw .noSpace(needed: bytes, free: free) }
  }

  private static func free(_ descriptor: Int32) throws(AreaFileError) -> Int {
    var facts = statvfs()
    guard fstatvfs(descriptor, &facts) == 0 else { throw .last("fstatvfs") }
    return free(facts)
  }

  /// Bytes that anybody may have: what is kept for root stays out of it.
  private static func free(_ facts: statvfs) -> Int {
    let (bytes, overflow) = facts.f_bavail.multipliedReportingOverflow(by: facts.f_frsize)
    return overflow ? Int.max : Int(clamping: bytes)
  }
}
