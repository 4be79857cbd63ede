/// Bodies of the POST requests of the control API. Keys that are not listed are refused: a misspelt "bytes"
/// must not page out everything.

/// POST /v1/evict.
public struct EvictRequest: Codable, Sendable {
  /// Whom: a process id or a group.
  public var target: TargetName
  /// How much, in bytes, at least 1; nil for all that can be evicted.
  public var bytes: Int?

  enum CodingKeys: String, CodingKey, CaseIterable {
    case target, bytes
  }

  public init(target: TargetName, bytes: Int?) {
    self.target = target
    self.bytes = bytes
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    target = try fields.decode(TargetName.self, forKey: .target)
    bytes = try fields.wholeNumberIfPresent(forKey: .bytes)
    if let bytes, bytes < 1 {
      throw fields.invalid(.bytes, "must be 1 or more; leave it out to evict all that is evictable")
    }
  }
}

/// POST /v1/restore.
public struct RestoreRequest: Codable, Sendable {
  /// Whom: a process id or a group.
  public var target: TargetName

  enum CodingKeys: String, CodingKey, CaseIterable {
    case target
  }

  public init(target: TargetName) {
    self.target = target
  }

  public init(from decoder: any Decoder) throws {
    target = try decoder.strictContainer(keyedBy: CodingKeys.self).decode(TargetName.self, forKey: .target)
  }
}

/// POST /v1/limit.
public struct LimitRequest: Codable, Sendable {
  public var group: String
  /// In JSON, as `limit_bytes`: a number, at least ``ByteSize/minimumLimit``; "auto"; or `null`, which has to be written, for none.
  public var limit: MemoryLimit

  enum CodingKeys: String, CodingKey, CaseIterable {
    case group
    case limit = "limit_bytes"
  }

  public init(group: String, limit: MemoryLimit) {
    self.group = group
    self.limit = limit
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    group = try fields.decode(String.self, forKey: .group)
    if try fields.decodeNil(forKey: .limit) {
      limit = .none
    } else if let word = try? fields.decode(String.self, forKey: .limit) {
      guard word == MemoryLimit.autoWord else {
        throw fields.invalid(.limit, "must be a whole number, \"auto\", or null for no limit")
      }
      limit = .auto
    } else {
      let bytes: Int = try fields.wholeNumber(forKey: .limit)
      guard bytes >= ByteSize.minimumLimit else {
        throw fields.invalid(.limit, "must be at least \(ByteSize.minimumLimit), \"auto\", or null for no limit")
      }
      limit = .fixed(bytes: bytes)
    }
  }

  public func encode(to encoder: any Encoder) throws {
    var fields = encoder.container(keyedBy: CodingKeys.self)
    try fields.encode(group, forKey: .group)
    switch limit {
    case .none: try fields.encodeNil(forKey: .limit)
    case .fixed(let bytes): try fields.encode(bytes, forKey: .limit)
    case .auto: try fields.encode(MemoryLimit.autoWord, forKey: .limit)
    }
  }
}

/// POST /v1/pool, and the reply to it.
public struct PoolLimit: Codable, Sendable, Equatable {
  /// RAM that compressed pages may take, in bytes, at least ``ByteSize/minimumPoolLimit``.
  public var limitBytes: Int

  enum CodingKeys: String, CodingKey, CaseIterable {
    case limitBytes = "limit_bytes"
  }

  public init(limitBytes: Int) {
    self.limitBytes = limitBytes
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    limitBytes = try fields.wholeNumber(forKey: .limitBytes)
    if limitBytes < ByteSize.minimumPoolLimit {
      throw fields.invalid(.limitBytes, "must be at least \(ByteSize.minimumPoolLimit)")
    }
  }
}

/// POST /v1/detach.
public struct DetachRequest: Codable, Sendable {
  public var pid: Int32

  enum CodingKeys: String, CodingKey, CaseIterable {
    case pid
  }

  public init(pid: Int32) {
    self.pid = pid
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    pid = try fields.wholeNumber(forKey: .pid)
    if pid < 1 { throw fields.invalid(.pid, "must be a process id") }
  }
}

/// A process id or the name of a group. In JSON a string, or for a process id a number as well.
public struct TargetName: Codable, Sendable, Equatable {
  public let text: String

  public init(_ text: String) {
    self.text = text
  }

  public init(from decoder: any Decoder) throws {
    let value = try decoder.singleValueContainer()
    if let pid = try? value.decode(Int32.self) {
      text = String(pid)
    } else {
      text = try value.decode(String.self)
    }
  }

  public func encode(to encoder: any Encoder) throws {
    var value = encoder.singleValueContainer()
    try value.encode(text)
  }
}
