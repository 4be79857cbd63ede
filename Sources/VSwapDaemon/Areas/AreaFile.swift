import CUserfault
import Glibc

/// A file or block device that is to be a swap area: checked, open, locked against other daemons, and with a fresh signature.
/// A handle: copies are the same open file, and `close` is the last call.
struct AreaFile: Sendable {
  /// Absolute, without links.
  let path: String
  let isBlockDevice: Bool
  /// Open for reading and writing.
  let descriptor: Int32
  /// Whole segments, the one with the signature included.
  let sizeBytes: Int
  /// Whether reads and writes pass by the page cache, and so have to be aligned.
  let isDirect: Bool
  /// Whether `open` made the file.
  let wasMade: Bool
  /// Random; in the signature.
  let identity: UInt64
  /// Of the file: its device and inode. Of a block device: itself, and 0.
  let device: UInt64
  let inode: UInt64

  static let segmentBytes = 256 << 10
  /// Sizes that an area can have, in bytes.
  static let sizes = (2 << 20)...(512 << 30)
  /// How much of a device has to be blank before it is taken without a signature: partition tables and the heads of file systems
  /// lie in it.
  private static let blankBytes = 1 << 20

  /// Makes a file of `sizeBytes`, or takes a file or block device that is there. What an area of vswapd held before is discarded.
  ///
  /// - Parameters:
  ///   - path: absolute.
  ///   - sizeBytes: rounded down to segments. Has to be given for a file that is not there yet; nil: all of what is there.
  ///   - known: the areas that are in use already.
  static func open(path: String, sizeBytes: Int?, known: [AreaFile]) throws(AreaFileError) -> AreaFile {
    guard path.hasPrefix("/"), !path.utf8.contains(0) else { throw .unusablePath }
    if let sizeBytes, !sizes.contains(sizeBytes) { throw .sizeOutOfRange(sizeBytes) }
    let wanted = sizeBytes.map(wholeSegments)
    let resolved = try resolve(path)
    if let facts = resolved.facts { return try adopt(resolved.path, facts, wanted, known) }
    guard let wanted else { throw .sizeMissing }
    return try make(resolved.path, wanted)
  }

  /// Ends the use. `removing`: a file goes, unless something else is at its path by now or it is not vswapd's any more; a device
  /// is made blank, so that it can be taken again. Returns whether that was done.
  @discardableResult
  func close(removing: Bool) -> Bool {
    defer {
      // A pager that does not answer may have the open file in its ring still, and with it the lock.
      flock(descriptor, LOCK_UN)
      Glibc.close(descriptor)  // nothing is buffered: an error has nothing to say
    }
    guard removing, wasMade || isOurs() else { return false }
    guard isBlockDevice else { return isAtPath() && unlink(path) == 0 }
    do throws(KernelError) {
      try AreaSignature.wipe(descriptor, count: Self.blankBytes)
      return true
    } catch {
      return false
    }
  }

  private func isOurs() -> Bool {
    guard case .signature(let found)? = try? AreaSignature.content(of: descriptor) else { return false }
    return found.identity == identity
  }

  private func isAtPath() -> Bool {
    var facts = stat()
    return lstat(path, &facts) == 0 && facts.st_dev == device && facts.st_ino == inode
  }

  private static func wholeSegments(_ bytes: Int) -> Int {
    bytes / segmentBytes * segmentBytes
  }

  // MARK: - The path

  /// The path without links, and what is there; nil: nothing, but its directory exists.
  private static func resolve(_ path: String) throws(AreaFileError) -> (path: String, facts: stat?) {
    if let real = real(path) {
      var facts = stat()
      guard lstat(real, &facts) == 0 else { throw .last("lstat") }
      return (real, facts)
    }
    guard errno == ENOENT else { throw .last("realpath") }
    let name = path[path.index(after: path.lastIndex(of: "/")!)...]  // it is absolute
    guard !["", ".", ".."].contains(name) else { throw .system(KernelError(call: "realpath", code: ENOENT)) }
    guard let parent = real(String(path.dropLast(name.count))) else { throw .last("realpath") }
    return (parent == "/" ? "/\(name)" : "\(parent)/\(name)", nil)
  }

  private static func real(_ path: String) -> String? {
    guard let resolved = realpath(path, nil) else { return nil }
    defer { free(resolved) }
    // Where a link leads may have a name that no String can hold: with another one in its place another file would be meant.
    guard let path = String(validatingCString: resolved) else {
      errno = EILSEQ
      return nil
    }
    return path
  }

  private static func memoryFileSystem(_ path: String) -> String? {
    vs_memory_filesystem(path).map { String(cString: $0) }
  }

  // MARK: - A new file

  private static func make(_ path: String, _ bytes: Int) throws(AreaFileError) -> AreaFile {
    let directory = String(path[...path.lastIndex(of: "/")!])
    if let name = memoryFileSystem(directory) { throw .inMemory(name) }
    try AreaSpace.check(directory: directory, for: bytes)
    let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw errno == EEXIST ? .inTheWay : .last("open") }
    do throws(AreaFileError) {
      try lock(descriptor)
      var facts = stat()
      guard fstat(descriptor, &facts) == 0 else { throw .last("fstat") }
      try AreaSpace.reserve(descriptor, bytes: bytes, allocated: 0)
      return try AreaFile(signing: descriptor, path: path, facts: facts, sizeBytes: bytes, wasMade: true)
    } catch {
      unlink(path)
      Glibc.close(descriptor)
      throw error
    }
  }

  // MARK: - What is there

  private static func adopt(
    _ path: String, _ facts: stat, _ wanted: Int?, _ known: [AreaFile]
  ) throws(AreaFileError) -> AreaFile {
    let isDevice = try isBlockDevice(facts)
    let (device, inode) = identifiers(facts)
    if known.contains(where: { $0.device == device && $0.inode == inode }) { throw .known }
    if !isDevice, let name = memoryFileSystem(path) { throw .inMemory(name) }
    let descriptor = Glibc.open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | (isDevice ? O_EXCL : 0))
    guard descriptor >= 0 else { throw refusal() }
    do throws(AreaFileError) {
      try lock(descriptor)
      var opened = stat()
      guard fstat(descriptor, &opened) == 0 else { throw .last("fstat") }
      guard identifiers(opened) == (device, inode) else { throw .inTheWay }
      // Who had it locked may have retired it.
      guard isDevice || opened.st_nlink > 0 else { throw .removed }
      let bytes = isDevice ? try checkDevice(descriptor, wanted) : try checkFile(descriptor, opened, wanted)
      return try AreaFile(signing: descriptor, path: path, facts: opened, sizeBytes: bytes, wasMade: false)
    } catch {
      Glibc.close(descriptor)
      throw error
    }
  }

  private static func isBlockDevice(_ facts: stat) throws(AreaFileError) -> Bool {
    switch facts.st_mode & S_IFMT {
    case S_IFREG: return false
    case S_IFBLK: return true
    case S_IFDIR: throw .wrongKind("a directory")
    case S_IFCHR: throw .wrongKind("a character device")
    case S_IFIFO: throw .wrongKind("a named pipe")
    case S_IFSOCK: throw .wrongKind("a socket")
    default: throw .wrongKind("something else")
    }
  }

  private static func identifiers(_ facts: stat) -> (device: UInt64, inode: UInt64) {
    let isDevice = facts.st_mode & S_IFMT == S_IFBLK
    return isDevice ? (UInt64(facts.st_rdev), 0) : (UInt64(facts.st_dev), UInt64(facts.st_ino))
  }

  /// Reads errno of open(2): call it first.
  private static func refusal() -> AreaFileError {
    switch errno {
    case EBUSY: .deviceBusy
    case ETXTBSY: .kernelSwap
    default: .last("open")
    }
  }

  /// For a moment after a daemon was killed its io_uring holds the file, and may still write to it: so long as that is so the file is in use.
  private static func lock(_ descriptor: Int32) throws(AreaFileError) {
    let deadline = vs_monotonic_ns() + 2_000_000_000
    while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
      guard errno == EWOULDBLOCK else { throw .last("flock") }
      guard vs_monotonic_ns() < deadline else { throw .usedByDaemon }
      usleep(10_000)
    }
  }

  /// Returns the area's size.
  private static func checkDevice(_ descriptor: Int32, _ wanted: Int?) throws(AreaFileError) -> Int {
    let size = vs_device_size(descriptor)
    guard size >= 0 else { throw .system(KernelError(call: "ioctl", code: Int32(-size))) }
    let bytes = wholeSegments(Int(size))
    guard bytes >= sizes.lowerBound else { throw .sizeOutOfRange(Int(size)) }
    switch try content(descriptor, blankBytes) {
    case .signature, .blank: break
    case .kernelSwap: throw .kernelSwap
    case .other: throw .foreignDevice
    }
    guard let wanted else { return min(bytes, sizes.upperBound) }
    guard wanted <= bytes else { throw .deviceTooSmall(actual: bytes) }
    return wanted
  }

  /// Returns the area's size. Blocks that an earlier use gave back are reserved again.
  private static func checkFile(_ descriptor: Int32, _ facts: stat, _ wanted: Int?) throws(AreaFileError) -> Int {
    switch try content(descriptor, pageSize) {
    case .signature: break
    case .kernelSwap: throw .kernelSwap
    case .blank, .other: throw .foreignFile
    }
    guard facts.st_uid == geteuid(), facts.st_mode & 0o077 == 0 else { throw .insecure }
    let bytes = wholeSegments(Int(facts.st_size))
    guard sizes.contains(bytes) else { throw .sizeOutOfRange(Int(facts.st_size)) }
    guard wanted == nil || wanted == bytes else { throw .sizeDiffers(actual: bytes) }
    try AreaSpace.reserve(descriptor, bytes: bytes, allocated: allocated(facts, atMost: bytes))
    return bytes
  }

  /// What a file system says of its blocks is its own business, and may be anything.
  private static func allocated(_ facts: stat, atMost bytes: Int) -> Int {
    let blocks = max(0, Int(facts.st_blocks))
    return blocks > bytes / 512 ? bytes : blocks * 512
  }

  private static func content(_ descriptor: Int32, _ count: Int) throws(AreaFileError) -> AreaSignature.Content {
    do {
      return try AreaSignature.content(of: descriptor, count: count)
    } catch {
      throw .system(error)
    }
  }

  // MARK: - Putting it to use

  /// `descriptor` stays the caller's when this throws.
  private init(
    signing descriptor: Int32, path: String, facts: stat, sizeBytes: Int, wasMade: Bool
  ) throws(AreaFileError) {
    self.path = path
    self.descriptor = descriptor
    self.sizeBytes = sizeBytes
    self.wasMade = wasMade
    isBlockDevice = facts.st_mode & S_IFMT == S_IFBLK
    (device, inode) = Self.identifiers(facts)
    identity = UInt64.random(in: 1 ... .max)
    do throws(KernelError) {
      isDirect = try Self.makeDirect(descriptor)
      try AreaSignature(identity: identity, sizeBytes: sizeBytes).write(to: descriptor)
    } catch {
      throw .system(error)
    }
  }

  /// Only now: the blocks of a file may have had to be written byte by byte. false: its file system cannot do it.
  private static func makeDirect(_ descriptor: Int32) throws(KernelError) -> Bool {
    let flags = fcntl(descriptor, F_GETFL)
    guard flags >= 0 else { throw .last("fcntl") }
    if fcntl(descriptor, F_SETFL, flags | O_DIRECT) == 0 { return true }
    guard errno == EINVAL else { throw .last("fcntl") }
    return false
  }
}
