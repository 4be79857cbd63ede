import Glibc
import VSwapAPI

/// The files that belong to vswapctl, wherever it is installed.
enum InstalledFile {
  /// The library to preload: $VSWAP_SHIM, or libvswap.so beside this program or below ../lib, where
  /// scripts/install puts it.
  static func library() throws(LaunchRefusal) -> String {
    if let value = getenv("VSWAP_SHIM") {
      let path = absolute(String(cString: value))
      guard access(path, R_OK) == 0 else {
        throw LaunchRefusal(
          .notAttachable, "VSWAP_SHIM names \(path), which cannot be read; correct or unset it")
      }
      return path
    }
    let own = directory()
    let places = ["\(own)", "\(own)/../lib/\(triplet)/vswapd", "\(own)/../lib/vswapd"].map {
      "\($0)/\(RuntimePaths.libraryName)"
    }
    for place in places where access(place, R_OK) == 0 { return absolute(place) }
    throw LaunchRefusal(
      .notAttachable,
      "\(RuntimePaths.libraryName) is neither in \(own) nor in \(own)/../lib/\(triplet)/vswapd; install it or set "
        + "VSWAP_SHIM")
  }

  /// The daemon's program: vswapd beside this one, or in $PATH.
  static func daemon() throws(LaunchRefusal) -> String {
    let neighbour = "\(directory())/vswapd"
    if access(neighbour, X_OK) == 0 { return neighbour }
    do {
      return try ProgramSearch.find("vswapd", searchPath: getenv("PATH").map { String(cString: $0) })
    } catch {
      throw LaunchRefusal(.notAttachable, "vswapd is neither beside vswapctl nor in PATH; install it")
    }
  }

  /// Where Debian keeps the libraries of this machine: units that may execute from few places may execute
  /// from there.
  #if arch(x86_64)
    private static let triplet = "x86_64-linux-gnu"
  #elseif arch(arm64)
    private static let triplet = "aarch64-linux-gnu"
  #endif

  /// Where this program is.
  private static func directory() -> String {
    let program = absolute("/proc/self/exe")
    return String(program[..<(program.lastIndex(of: "/") ?? program.startIndex)])
  }

  /// Without links, "." and ".."; `path` itself where that cannot be had.
  static func absolute(_ path: String) -> String {
    guard let resolved = realpath(path, nil) else { return path }
    defer { free(resolved) }
    return String(cString: resolved)
  }
}
