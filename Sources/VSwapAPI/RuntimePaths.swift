import Glibc

/// Where a daemon and its clients meet: the runtime directory and the sockets in it.
public enum RuntimePaths {
  /// Longest path of a unix socket, in bytes: sun_path without its NUL.
  public static let longestSocketPath = 107

  /// The directory that is used when none is named: /run/vswapd for root, else the `vswapd` in
  /// $XDG_RUNTIME_DIR; nil if that is not set.
  public static func defaultDirectory(environment: [String: String], userIdentifier: UInt32) -> String? {
    if userIdentifier == 0 { return "/run/vswapd" }
    guard let parent = environment["XDG_RUNTIME_DIR"], parent.hasPrefix("/") else { return nil }
    return "\(parent)/vswapd"
  }

  public static func controlSocket(in directory: String) -> String {
    "\(directory)/control.sock"
  }

  public static func attachSocket(in directory: String) -> String {
    "\(directory)/attach.sock"
  }

  /// File name of the library that is preloaded into targets.
  public static let libraryName = "libvswap.so"
  /// How the directories in a runtime directory begin that hold links to the library.
  public static let preloadPrefix = "preload-"

  /// Where in the runtime directory a link to `library` is made if LD_PRELOAD cannot name its own path. One place
  /// for each library: several installations may use one daemon.
  public static func preloadDirectory(in directory: String, for library: String) -> String {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325  // FNV-1a
    for byte in library.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    return "\(directory)/\(preloadPrefix)\(String(hash, radix: 16))"
  }

  /// `path` as seen from the root directory, for a daemon whose working directory is another one. Links stay.
  public static func absolute(_ path: String) -> String {
    guard !path.hasPrefix("/"), let here = getcwd(nil, 0) else { return path }
    defer { free(here) }
    return "\(String(cString: here))/\(path)"
  }
}
