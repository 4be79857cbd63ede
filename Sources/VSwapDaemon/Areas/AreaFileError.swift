/// Why a path cannot be a swap area. Nothing was changed, and what was made is gone again. Sizes are in bytes.
enum AreaFileError: Error, Equatable {
  /// Not absolute, or with a NUL in it.
  case unusablePath
  /// Nothing is there, and no size was given to make it with.
  case sizeMissing
  /// Smaller or larger than an area can be.
  case sizeOutOfRange(Int)
  /// The file is an area of another size than the one asked for.
  case sizeDiffers(actual: Int)
  /// The device is smaller than what was asked for.
  case deviceTooSmall(actual: Int)
  /// Neither a regular file nor a block device, but "a directory", "a socket", ...
  case wrongKind(String)
  /// The file system keeps its files in memory: "tmpfs", ...
  case inMemory(String)
  /// A file that vswapd did not make.
  case foreignFile
  /// A device with something on it that vswapd did not put there.
  case foreignDevice
  /// A file that vswapd made, and that others own or may open.
  case insecure
  /// The kernel's own swap, in use or made by mkswap(8).
  case kernelSwap
  /// The device is mounted, or something else holds it.
  case deviceBusy
  /// Another daemon has it.
  case usedByDaemon
  /// This daemon has it.
  case known
  /// Something is at a path where nothing was a moment ago, or a symbolic link leads nowhere.
  case inTheWay
  /// Another daemon had the file, and has retired it meanwhile.
  case removed
  /// The file system has only `free` of the bytes that are needed.
  case noSpace(needed: Int, free: Int)
  case system(KernelError)

  /// The error of `call`, which failed on this thread just now (reads errno: call it before anything else).
  static func last(_ call: StaticString) -> AreaFileError {
    .system(.last(call))
  }
}
