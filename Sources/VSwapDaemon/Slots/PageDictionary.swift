import CZstd

/// One zstd dictionary, prepared for both directions: a trivial handle, which any number of threads may use at once. Some 90 KiB.
struct PageDictionary: @unchecked Sendable {
  /// What a codec compresses and decompresses with.
  let compressor: OpaquePointer
  let decompressor: OpaquePointer
  let figures: Dictionaries.Figures

  /// From what ZDICT made of samples (`length` bytes, copied). nil: no memory, or zstd does not take it.
  static func create(_ content: UnsafeRawPointer, length: Int) -> PageDictionary? {
    // A page is compressed with the parameters of its dictionary: the same ones as without.
    var parameters = ZSTD_getCParams(Int32(Codec.level), UInt64(pageSize), length)
    parameters.minMatch = UInt32(Codec.shortestMatch)
    guard
      let compressor = ZSTD_createCDict_advanced(
        content, length, ZSTD_dlm_byCopy, ZSTD_dct_fullDict, parameters, ZSTD_defaultCMem)
    else { return nil }
    guard let decompressor = ZSTD_createDDict(content, length) else {
      ZSTD_freeCDict(compressor)
      return nil
    }
    let bytes = ZSTD_sizeof_CDict(compressor) + ZSTD_sizeof_DDict(decompressor)
    return PageDictionary(
      compressor: compressor, decompressor: decompressor, figures: .init(bytes: bytes, savesPercent: 0))
  }

  /// The same, with what it was found to save.
  func saving(percent: Double) -> PageDictionary {
    PageDictionary(
      compressor: compressor, decompressor: decompressor, figures: .init(bytes: figures.bytes, savesPercent: percent))
  }

  /// Nobody may use it any more.
  func destroy() {
    ZSTD_freeCDict(compressor)
    ZSTD_freeDDict(decompressor)
  }
}
