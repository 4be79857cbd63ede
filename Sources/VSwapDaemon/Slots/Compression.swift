import CZstd

/// zstd contexts and buffers for one thread: a trivial handle; nothing in it may be shared.
///
/// Everything is allocated in `create`, which also runs each context once so that it sizes its workspace:
/// `compress` and `decompress` allocate nothing, but where `compress` changes between having a dictionary and having none. Frames are
/// written without zstd's magic number, and with the content size (4096), which the decompressor insists on.
struct Codec: @unchecked Sendable {
  /// A page whose compressed length is this or more is kept raw: the gain would not pay for decompressing.
  static let rawThreshold = pageSize - 64
  /// zstd's level for pages.
  static let level = -1
  /// Few and long matches: they are what decompression spends its time on.
  static let shortestMatch = 6

  /// nil: it only unpacks.
  private let compressor: OpaquePointer?
  private let decompressor: OpaquePointer
  /// A private page: copies of frames to compress, or of objects to decompress. 64-byte aligned.
  let page: UnsafeMutableRawPointer
  /// Output of `compress`; as long as zstd may want it.
  private let output: UnsafeMutableRawPointer
  private static let outputLength = 2 * pageSize
  /// ZSTD_c_format and ZSTD_d_format, which are macros for these.
  private static let compressorFormat = ZSTD_c_experimentalParam2
  private static let decompressorFormat = ZSTD_d_experimentalParam1
  /// ZSTD_c_forceAttachDict. The other way copies the dictionary's tables for each page.
  private static let attachDictionary = ZSTD_c_experimentalParam4

  /// A codec with the given zstd level (1 ... 19, or negative for the fast ones).
  ///
  /// - Throws: ENOMEM; nothing is left behind.
  static func create(level: Int = Codec.level) throws(KernelError) -> Codec {
    guard let compressor = ZSTD_createCCtx() else { throw noMemory }
    Self.set(compressor, ZSTD_c_compressionLevel, Int32(level))
    Self.set(compressor, Self.compressorFormat, Int32(ZSTD_f_zstd1_magicless.rawValue))
    Self.set(compressor, ZSTD_c_minMatch, Int32(shortestMatch))
    Self.set(compressor, ZSTD_c_checksumFlag, 0)
    // One byte of frames that have a dictionary.
    Self.set(compressor, ZSTD_c_dictIDFlag, 1)
    Self.set(compressor, Self.attachDictionary, Int32(ZSTD_dictForceAttach.rawValue))
    let codec = try Codec(compressor: compressor)
    guard codec.warmUp() else {
      codec.destroy()
      throw noMemory
    }
    return codec
  }

  /// A codec that only unpacks, and takes a third of the memory.
  ///
  /// - Throws: ENOMEM; nothing is left behind.
  static func createForUnpacking() throws(KernelError) -> Codec { try Codec(compressor: nil) }

  private static var noMemory: KernelError { KernelError(call: "ZSTD_createCCtx", code: KernelError.noMemory) }

  /// Takes over the compressor, also when it throws.
  private init(compressor: OpaquePointer?) throws(KernelError) {
    guard let decompressor = ZSTD_createDCtx() else {
      ZSTD_freeCCtx(compressor)
      throw Self.noMemory
    }
    let status = ZSTD_DCtx_setParameter(
      decompressor, Self.decompressorFormat, Int32(ZSTD_f_zstd1_magicless.rawValue))
    precondition(ZSTD_isError(status) == 0, "zstd without magicless frames")
    self.compressor = compressor
    self.decompressor = decompressor
    page = .allocate(byteCount: pageSize, alignment: 64)
    output = .allocate(byteCount: Self.outputLength, alignment: 64)
  }

  private static func set(_ context: OpaquePointer, _ parameter: ZSTD_cParameter, _ value: Int32) {
    let status = ZSTD_CCtx_setParameter(context, parameter, value)
    precondition(ZSTD_isError(status) == 0, "zstd refuses a parameter")
  }

  /// Makes both contexts allocate what they need for pages. false: there is no memory.
  private func warmUp() -> Bool {
    for index in 0..<pageSize {
      page.storeBytes(of: UInt8(index % 97), toByteOffset: index, as: UInt8.self)
    }
    guard let (bytes, length) = compress(page) else { return false }
    page.copyMemory(from: bytes, byteCount: length)
    return decompress(page, length: length, into: output)
  }

  /// Frees contexts and buffers.
  func destroy() {
    if let compressor { ZSTD_freeCCtx(compressor) }
    ZSTD_freeDCtx(decompressor)
    page.deallocate()
    output.deallocate()
  }

  /// Compresses 4096 private bytes, with a dictionary or without; the result stays valid until the next call.
  ///
  /// nil when it would take 4032 bytes or more, or zstd fails: the page is stored raw then.
  func compress(
    _ source: UnsafeRawPointer, with dictionary: PageDictionary? = nil
  ) -> (bytes: UnsafeRawPointer, length: Int)? {
    guard let compressor else { preconditionFailure("a codec that only unpacks") }
    if let dictionary, ZSTD_isError(ZSTD_CCtx_refCDict(compressor, dictionary.compressor)) != 0 { return nil }
    let length = ZSTD_compress2(compressor, output, Self.outputLength, source, pageSize)
    if dictionary != nil {
      // After an error a frame is still under way, during which zstd takes no other dictionary.
      _ = ZSTD_CCtx_reset(compressor, ZSTD_reset_session_only)
      let forgotten = ZSTD_CCtx_refCDict(compressor, nil)
      precondition(ZSTD_isError(forgotten) == 0, "zstd does not let go of a dictionary")
    }
    guard ZSTD_isError(length) == 0, length < Self.rawThreshold else { return nil }
    return (UnsafeRawPointer(output), length)
  }

  /// Decompresses `length` private bytes into exactly 4096. false: they are not what `compress` wrote, or it had another dictionary.
  func decompress(
    _ source: UnsafeRawPointer, length: Int, into page: UnsafeMutableRawPointer, with dictionary: PageDictionary? = nil
  ) -> Bool {
    ZSTD_decompress_usingDDict(decompressor, page, pageSize, source, length, dictionary?.decompressor) == pageSize
  }

  /// Number of the dictionary (1 ... 255) that a frame of `length` bytes was compressed with; 0: with none.
  ///
  /// RFC 8878, 3.1.1.1: the lowest two bits of the first byte say how long the number is (`compress` writes one byte or none). It follows
  /// at once, since bit 5 (single segment: pages fit into the window) says that there is no window descriptor. What says anything else
  /// was not written by `compress`, and is refused when it is decompressed.
  @inline(__always)
  static func dictionary(of source: UnsafeRawPointer, length: Int) -> UInt32 {
    guard length > 1 else { return 0 }
    let descriptor = source.load(as: UInt8.self)
    return descriptor & 0x23 == 0x21 ? UInt32(source.load(fromByteOffset: 1, as: UInt8.self)) : 0
  }
}
