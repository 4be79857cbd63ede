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
      sanitizerOptions(),
      "VSWAP_GROUP",
      "VSWAP_PASS",
      "VSWAP_REQUIRED",
    ]
  }

  /// AddressSanitizer's library ends a program in which it is not the first one. It works behind libvswap.so, which
  /// calls what comes after it. An option that is given twice has its last value, so the user's own ones win.
  private static func sanitizerOptions() -> String {
    let own = getenv("ASAN_OPTIONS").map { ":" + String(cString: $0) } ?? ""
    return own.hasPrefix(":\(noOrder)") ? "ASAN_OPTIONS=\(own.dropFirst())" : "ASAN_OPTIONS=\(noOrder)\(own)"
  }
  private static let noOrder = "verify_asan_link_order=0"

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
