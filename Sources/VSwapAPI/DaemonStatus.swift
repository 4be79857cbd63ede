/// The reply to GET /v1/status, and what `vswapctl status --json` prints. All sizes are in bytes, pages have
/// 4096.
public struct DaemonStatus: Codable, Sendable, Equatable {
  public var version: String
  /// The daemon's process id.
  public var pid: Int32
  public var uptimeSeconds: Double
  public var pool: PoolStatus
  public var cache: PageCount
  public var zero: PageCount
  /// What the daemon itself needs to know where every page is.
  public var metadataBytes: Int
  public var areas: [AreaStatus]
  public var groups: [GroupStatus]
  /// The last 16 groups whose last target has gone, oldest first.
  public var endedGroups: [GroupStatus]

  enum CodingKeys: String, CodingKey {
    case version, pid
    case uptimeSeconds = "uptime_seconds"
    case pool, cache, zero
    case metadataBytes = "metadata_bytes"
    case areas, groups
    case endedGroups = "ended_groups"
  }

  public init(
    version: String = vswapVersion, pid: Int32, uptimeSeconds: Double, pool: PoolStatus,
    cache: PageCount, zero: PageCount, metadataBytes: Int, areas: [AreaStatus] = [],
    groups: [GroupStatus], endedGroups: [GroupStatus]
  ) {
    self.version = version
    self.pid = pid
    self.uptimeSeconds = uptimeSeconds
    self.pool = pool
    self.cache = cache
    self.zero = zero
    self.metadataBytes = metadataBytes
    self.areas = areas
    self.groups = groups
    self.endedGroups = endedGroups
  }
}

/// A tier that is measured in pages alone.
public struct PageCount: Codable, Sendable, Equatable {
  public var pages: Int

  public init(pages: Int) {
    self.pages = pages
  }
}
