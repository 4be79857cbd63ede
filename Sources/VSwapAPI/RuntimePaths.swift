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

  /// `path` as seen from the root directory, for a daemon whose working directory is another one. Links stay.
  public static func absolute(_ path: String) -> String {
    guard !path.hasPrefix("/"), let here = getcwd(nil, 0) else { return path }
    defer { free(here) }
    return "\(String(cString: here))/\(path)"
  }
}
