import Glibc

/// A sparse memfd, mapped shared and writable: the only kind of memory the daemon keeps state in.
///
/// A trivial handle: copies are the same mapping. Every call may come from any thread; `destroy` must be
/// the last one. The content survives in the descriptor, so a successor can map it again.
struct Mapping: @unchecked Sendable {
  /// First byte; aligned to `pageSize`.
  let base: UnsafeMutableRawPointer
  /// Bytes mapped: what `create` was asked for, rounded up to whole pages.
  let length: Int
  /// The memfd. Owned by the mapping.
  let descriptor: Int32

  /// Creates `length` bytes (at least 1, rounded up to pages) of zeros that take no RAM until touched.
  ///
  /// - Parameters:
  ///   - name: appears in /proc/self/maps; at most 249 bytes.
  ///   - sealed: fixes the size, which makes the descriptor safe to hand to a target.
  /// - Throws: the call that failed; nothing is left behind.
  static func create(name: String, length: Int, sealed: Bool = false) throws(KernelError) -> Mapping {
    precondition(length > 0, "a mapping has at least one byte")
    let size = (length + pageSize - 1) & ~(pageSize - 1)
    let descriptor = memfd_create(name, CUnsignedInt(MFD_CLOEXEC) | CUnsignedInt(MFD_ALLOW_SEALING))
    guard descriptor >= 0 else { throw .last("memfd_create") }
    do {
      return try Mapping(mapping: descriptor, size: size, sealed: sealed)
    } catch {
      close(descriptor)
      throw error
    }
  }

  /// The same, private to this process and without a descriptor, so that none need be had: for what can be found again otherwise. It cannot be
  /// discarded or measured.
  static func anonymous(length: Int) throws(KernelError) -> Mapping {
    let size = (length + pageSize - 1) & ~(pageSize - 1)
    guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), base != MAP_FAILED
    else { throw .last("mmap") }
    return Mapping(base: base, length: size, descriptor: -1)
  }

  private init(base: UnsafeMutableRawPointer, length: Int, descriptor: Int32) {
    self.base = base
    self.length = length
    self.descriptor = descriptor
  }

  /// Sizes, seals and maps a fresh memfd, which stays the caller's when this throws.
  private init(mapping descriptor: Int32, size: Int, sealed: Bool) throws(KernelError) {
    guard ftruncate(descriptor, size) == 0 else { throw .last("ftruncate") }
    if sealed {
      let seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
      guard fcntl(descriptor, F_ADD_SEALS, seals) == 0 else { throw .last("fcntl") }
    }
    let protection = PROT_READ | PROT_WRITE
    let address = mmap(nil, size, protection, MAP_SHARED | MAP_NORESERVE, descriptor, 0)
    guard let address, address != MAP_FAILED else { throw .last("mmap") }
    base = address
    length = size
    self.descriptor = descriptor
  }

  /// Gives the RAM of a range back; it reads as zeros afterwards. Both in bytes, multiples of `pageSize`.
  func discard(offset: Int, length: Int) throws(KernelError) {
    assert(offset >= 0 && length > 0 && offset + length <= self.length)
    assert(offset % pageSize == 0 && length % pageSize == 0)
    while fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0 {
      guard errno == EINTR else { throw .last("fallocate") }
    }
  }

  /// Gives a range its RAM in one go (MADV_POPULATE_WRITE), which costs a fraction of touching it page by page. Best effort: what is
  /// not populated takes its RAM when it is touched. Both in bytes, multiples of `pageSize`.
  func populate(offset: Int, length: Int) {
    assert(offset >= 0 && length > 0 && offset + length <= self.length)
    _ = madvise(base + offset, length, Self.populateWrite)
  }

  /// Linux 5.14; not in every libc's headers.
  private static let populateWrite: Int32 = 23

  /// RAM (or kernel swap) the mapping holds now, in bytes.
  func allocatedBytes() -> Int {
    var status = stat()
    // fstat of an own memfd fails only with EBADF or EFAULT: bugs.
    guard fstat(descriptor, &status) == 0 else { preconditionFailure("fstat of a mapping failed") }
    return Int(status.st_blocks) * 512
  }

  /// Unmaps and closes. No copy of the handle may be used afterwards.
  func destroy() {
    let unmapped = munmap(base, length)
    precondition(unmapped == 0, "munmap of a mapping failed")
    guard descriptor >= 0 else { return }
    // close(2) of a memfd has nothing to flush; an error here can only be a double close.
    let closed = close(descriptor)
    precondition(closed == 0, "close of a mapping failed")
  }
}
