import Glibc

/// The first page of an area, by which vswapd knows its own: magic, identity, size, then zeros. Numbers are little-endian.
struct AreaSignature: Equatable {
  /// Random, another one each time the area is put to use: what an earlier use left behind is told apart by it.
  var identity: UInt64
  /// Of the whole area.
  var sizeBytes: Int

  /// What is at the beginning of a file or device.
  enum Content: Equatable {
    case signature(AreaSignature)
    /// What mkswap(8) writes.
    case kernelSwap
    /// Zeros and nothing else.
    case blank
    case other
  }

  private static let magic = Array("VSWAPD-AREA-1\n".utf8)
  private static let identityOffset = 16
  private static let sizeOffset = 24
  /// Where the kernel's swap has its magic, with pages of 4096 bytes.
  private static let kernelOffset = 4086
  private static let kernelMagics = ["SWAPSPACE2", "SWAP-SPACE"].map { Array($0.utf8) }

  /// Looks at the first `count` bytes (at least a page) of a file or device, whether it is open for direct I/O or not.
  static func content(of descriptor: Int32, count: Int = pageSize) throws(KernelError) -> Content {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: pageSize)
    defer { buffer.deallocate() }
    var filled = 0
    while filled < count {
      let got = pread(descriptor, buffer.baseAddress! + filled, count - filled, off_t(filled))
      if got < 0 && errno == EINTR { continue }
      guard got >= 0 else { throw .last("pread") }
      if got == 0 { break }
      filled += got
    }
    return filled == count ? classify(UnsafeRawBufferPointer(buffer)) : .other
  }

  /// Makes this the first page, and waits until it is on the disk.
  func write(to descriptor: Int32) throws(KernelError) {
    try Self.writeHead(descriptor, count: pageSize) { page in
      page.copyBytes(from: Self.magic)
      page.storeBytes(of: identity.littleEndian, toByteOffset: Self.identityOffset, as: UInt64.self)
      page.storeBytes(of: UInt64(sizeBytes).littleEndian, toByteOffset: Self.sizeOffset, as: UInt64.self)
    }
  }

  /// Makes the first `count` bytes, whole pages, zeros.
  static func wipe(_ descriptor: Int32, count: Int) throws(KernelError) {
    try writeHead(descriptor, count: count) { _ in }
  }

  private static func classify(_ head: UnsafeRawBufferPointer) -> Content {
    if head.starts(with: magic) {
      let identity = UInt64(littleEndian: head.loadUnaligned(fromByteOffset: identityOffset, as: UInt64.self))
      let size = UInt64(littleEndian: head.loadUnaligned(fromByteOffset: sizeOffset, as: UInt64.self))
      return .signature(AreaSignature(identity: identity, sizeBytes: Int(clamping: size)))
    }
    if kernelMagics.contains(where: { head[kernelOffset...].starts(with: $0) }) { return .kernelSwap }
    return head.allSatisfy { $0 == 0 } ? .blank : .other
  }

  /// One aligned write, as direct I/O wants it, of what `fill` puts over zeros.
  private static func writeHead(
    _ descriptor: Int32, count: Int, _ fill: (UnsafeMutableRawBufferPointer) -> Void
  ) throws(KernelError) {
    let head = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: pageSize)
    defer { head.deallocate() }
    head.initializeMemory(as: UInt8.self, repeating: 0)
    fill(head)
    var written: Int
    repeat { written = pwrite(descriptor, head.baseAddress, count, 0) } while written < 0 && errno == EINTR
    guard written >= 0 else { throw .last("pwrite") }
    guard written == count else { throw KernelError(call: "pwrite", code: EIO) }
    guard fdatasync(descriptor) == 0 else { throw .last("fdatasync") }
  }
}
