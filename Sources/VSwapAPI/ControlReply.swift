/// What POST /v1/evict did.
public struct EvictReply: Codable, Sendable, Equatable {
  public var evictedPages: Int
  public var evictedBytes: Int

  enum CodingKeys: String, CodingKey {
    case evictedPages = "evicted_pages"
    case evictedBytes = "evicted_bytes"
  }

  public init(evictedPages: Int, evictedBytes: Int) {
    self.evictedPages = evictedPages
    self.evictedBytes = evictedBytes
  }
}

/// What POST /v1/restore and POST /v1/detach did.
public struct RestoreReply: Codable, Sendable, Equatable {
  public var restoredPages: Int
  public var restoredBytes: Int

  enum CodingKeys: String, CodingKey {
    case restoredPages = "restored_pages"
    case restoredBytes = "restored_bytes"
  }

  public init(restoredPages: Int, restoredBytes: Int) {
    self.restoredPages = restoredPages
    self.restoredBytes = restoredBytes
  }
}

/// What POST /v1/limit did: the limit that now holds.
public struct LimitReply: Codable, Sendable, Equatable {
  public var group: String
  /// Bytes; 0 for none, and for an automatic one, which the status knows.
  public var limitBytes: Int
  public var limitMode: LimitMode

  enum CodingKeys: String, CodingKey {
    case group
    case limitBytes = "limit_bytes"
    case limitMode = "limit_mode"
  }

  public init(group: String, limit: MemoryLimit) {
    self.group = group
    limitBytes = limit.bytes ?? 0
    limitMode = limit.mode
  }
}
