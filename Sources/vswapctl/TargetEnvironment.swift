import Glibc
import VSwapAPI

/// The variables that make a program a target, as changes to the environment for `vs_spawn_command`.
enum TargetEnvironment {
  /// For a program that is to attach at `socket`. VSWAP_GROUP and VSWAP_REQUIRED hold its process id and
  /// are added when that is known.
  static func changes(library: String, socket: String, limit: MemoryLimit) -> [String] {
    [
      "LD_PRELOAD=" + ([library] + otherPreloads()).joined(separator: ":"),
      "VSWAP_SOCKET=\(socket)",
      variable(limit),
      "VSWAP_GROUP",
      "VSWAP_PASS",
      "VSWAP_REQUIRED",
    ]
  }

  private static func variable(_ limit: MemoryLimit) -> String {
    switch limit {
    case .none: "VSWAP_LIMIT"
    case .fixed(let bytes): "VSWAP_LIMIT=\(bytes)"
    case .auto: "VSWAP_LIMIT=\(MemoryLimit.autoWord)"
    }
  }

  /// For a program that must not be a target even if this one is.
  static func removal() -> [String] {
    let others = otherPreloads()
    return [
      others.isEmpty ? "LD_PRELOAD" : "LD_PRELOAD=" + others.joined(separator: ":"),
      "VSWAP_SOCKET", "VSWAP_LIMIT", "VSWAP_GROUP", "VSWAP_PASS", "VSWAP_REQUIRED",
    ]
  }

  /// What LD_PRELOAD holds already, but for a libvswap.so of an enclosing `vswapctl run`.
  private static func otherPreloads() -> [String] {
    guard let value = getenv("LD_PRELOAD") else { return [] }
    return String(cString: value).split { $0 == ":" || $0 == " " }.map(String.init).filter {
      $0 != "libvswap.so" && !$0.hasSuffix("/libvswap.so")
    }
  }
}
