/// A limit on a group's resident memory, as users ask for it.
public enum MemoryLimit: Equatable, Sendable {
  case none
  /// At most so many bytes, at least ``ByteSize/minimumLimit``.
  case fixed(bytes: Int)
  /// As little as the group does with.
  case auto

  /// What users write for ``auto``.
  public static let autoWord = "auto"

  public var mode: LimitMode {
    switch self {
    case .none: .none
    case .fixed: .fixed
    case .auto: .auto
    }
  }

  /// Of a fixed limit; else nil.
  public var bytes: Int? {
    if case .fixed(let bytes) = self { return bytes }
    return nil
  }
}

/// What kind of a limit a group has.
public enum LimitMode: String, Codable, Sendable {
  case none, fixed, auto
}
