/// POST /v1/areas.
public struct SwaponRequest: Codable, Sendable, Equatable {
  /// Absolute.
  public var path: String
  /// Bytes; nil for all of a file or device that is there.
  public var sizeBytes: Int?
  /// Among ``SwapSpecification/priorities``; nil for one below all others.
  public var priority: Int?
  /// Free segments are given back to the file system or the device. In JSON, `discard`; false if it is left out.
  public var discards: Bool

  enum CodingKeys: String, CodingKey, CaseIterable {
    case path
    case sizeBytes = "size_bytes"
    case priority
    case discards = "discard"
  }

  public init(path: String, sizeBytes: Int?, priority: Int?, discards: Bool = false) {
    self.path = path
    self.sizeBytes = sizeBytes
    self.priority = priority
    self.discards = discards
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    path = try fields.absolutePath(forKey: .path)
    sizeBytes = try fields.wholeNumberIfPresent(forKey: .sizeBytes)
    priority = try fields.wholeNumberIfPresent(forKey: .priority)
    discards = try fields.decodeIfPresent(Bool.self, forKey: .discards) ?? false
    if let sizeBytes, sizeBytes < ByteSize.minimumArea {
      throw fields.invalid(.sizeBytes, "must be at least \(ByteSize.minimumArea)")
    }
    if let priority, !SwapSpecification.priorities.contains(priority) {
      throw fields.invalid(.priority, "must be \(SwapSpecification.priorityRule)")
    }
  }
}

/// POST /v1/swapoff: `{"path": "/swap0"}` or `{"all": true}`.
public struct SwapoffRequest: Codable, Sendable, Equatable {
  /// Absolute; nil for all areas.
  public var path: String?
  /// Only say what would be done.
  public var dryRun: Bool

  enum CodingKeys: String, CodingKey, CaseIterable {
    case path, all
    case dryRun = "dry_run"
  }

  public init(path: String?, dryRun: Bool) {
    self.path = path
    self.dryRun = dryRun
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    let all = try fields.decodeIfPresent(Bool.self, forKey: .all) ?? false
    dryRun = try fields.decodeIfPresent(Bool.self, forKey: .dryRun) ?? false
    if all && fields.contains(.path) { throw fields.invalid(.all, "and 'path' exclude one another") }
    path = all ? nil : try fields.absolutePath(forKey: .path)
  }

  public func encode(to encoder: any Encoder) throws {
    var fields = encoder.container(keyedBy: CodingKeys.self)
    try fields.encodeIfPresent(path, forKey: .path)
    if path == nil { try fields.encode(true, forKey: .all) }
    try fields.encode(dryRun, forKey: .dryRun)
  }
}

extension KeyedDecodingContainer {
  /// A path that means the same to whoever asks and to the daemon.
  func absolutePath(forKey key: Key) throws -> String {
    let path = try decode(String.self, forKey: key)
    guard path.hasPrefix("/"), !path.utf8.contains(0) else { throw invalid(key, "must be an absolute path") }
    return path
  }
}
