import Glibc
import VSwapAPI

/// The files that belong to vswapctl, wherever it is installed.
enum InstalledFile {
  /// The library to preload: $VSWAP_SHIM, or libvswap.so beside this program or in ../lib/vswapd.
  static func library() throws(LaunchRefusal) -> String {
    let path = try libraryPath()
    // ld.so(8) separates LD_PRELOAD at spaces and colons, and expands $ORIGIN and the like.
    guard !path.contains(where: { " \t\n:$".contains($0) }) else {
      throw LaunchRefusal(
        .notAttachable,
        "\(path): LD_PRELOAD cannot name a path with a space, colon or dollar sign; install it elsewhere")
    }
    return path
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

  private static let libraryName = "libvswap.so"

  private static func libraryPath() throws(LaunchRefusal) -> String {
    if let value = getenv("VSWAP_SHIM") {
      let path = absolute(String(cString: value))
      guard access(path, R_OK) == 0 else {
        throw LaunchRefusal(
          .notAttachable, "VSWAP_SHIM names \(path), which cannot be read; correct or unset it")
      }
      return path
    }
    let own = directory()
    let places = ["\(own)/\(libraryName)", "\(own)/../lib/vswapd/\(libraryName)"]
    for place in places where access(place, R_OK) == 0 { return absolute(place) }
    throw LaunchRefusal(
      .notAttachable,
      "\(libraryName) is neither in \(own) nor in \(own)/../lib/vswapd; install it or set VSWAP_SHIM")
  }

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
