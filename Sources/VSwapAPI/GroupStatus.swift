/// Processes that share one limit.
public struct GroupStatus: Codable, Sendable, Equatable {
  public enum State: String, Codable, Sendable {
    case ok
    /// Over its limit, being reclaimed.
    case overLimit = "over_limit"
    /// Over its limit because the pool has no room.
    case poolFull = "pool_full"
    /// Over its limit because its user has as much swapped out as one may.
    case overQuota = "over_quota"
    /// Over its limit because what is resident cannot be evicted (pinned, shared, locked).
    case unevictable
  }

  /// Its name; where another group has that too, "USER:NAME" or "USER:NAMESPACE:NAME", but for groups of the daemon's own user.
  public var id: String
  /// Whose it is: a user identifier.
  public var user: UInt32
  /// Bytes; 0 for none. Of an automatic limit, where it is now.
  public var limitBytes: Int
  public var limitMode: LimitMode
  /// Resident anonymous memory of all targets.
  public var residentBytes: Int
  public var swappedPages: Int
  public var state: State
  public var targets: [TargetStatus]
  /// Processes of the group whose memory no limit holds.
  public var notHeld: [ProcessNotHeld]
  public var totals: GroupTotals
  /// Where the group's pages have enough in common. Of an ended group: the one that it had.
  public var dictionary: DictionaryStatus?

  enum CodingKeys: String, CodingKey {
    case id, user
    case limitBytes = "limit_bytes"
    case limitMode = "limit_mode"
    case residentBytes = "resident_bytes"
    case swappedPages = "swapped_pages"
    case state, targets
    case notHeld = "not_held"
    case totals, dictionary
  }

  public init(
    id: String, user: UInt32 = 0, limitBytes: Int, limitMode: LimitMode, residentBytes: Int, swappedPages: Int, state: State,
    targets: [TargetStatus], notHeld: [ProcessNotHeld] = [], totals: GroupTotals, dictionary: DictionaryStatus? = nil
  ) {
    self.id = id
    self.user = user
    self.limitBytes = limitBytes
    self.limitMode = limitMode
    self.residentBytes = residentBytes
    self.swappedPages = swappedPages
    self.state = state
    self.targets = targets
    self.notHeld = notHeld
    self.totals = totals
    self.dictionary = dictionary
  }
}

/// A process that belongs to a group, but cannot be evicted from.
public struct ProcessNotHeld: Codable, Sendable, Equatable {
  public enum Reason: String, Codable, Sendable {
    /// It executed a program that has not attached: statically linked, set-user-ID, or with another environment.
    case executed
    /// It was let go of: `vswapctl detach`, or a breach of the protocol.
    case detached
  }

  public var pid: Int32
  /// Of the program that it was when it belonged to the group.
  public var name: String
  public var reason: Reason

  public init(pid: Int32, name: String, reason: Reason) {
    self.pid = pid
    self.name = name
    self.reason = reason
  }
}

/// What the pages of a group have in common, for the compression of those that leave from then on.
public struct DictionaryStatus: Codable, Sendable, Equatable {
  /// Memory that it takes.
  public var bytes: Int
  /// Of the compressed bytes, as measured on pages of the group when it was made.
  public var savesPercent: Double

  enum CodingKeys: String, CodingKey {
    case bytes
    case savesPercent = "saves_percent"
  }

  public init(bytes: Int, savesPercent: Double) {
    self.bytes = bytes
    self.savesPercent = savesPercent
  }
}

/// One process. The counters are pages since it joined.
public struct TargetStatus: Codable, Sendable, Equatable {
  public var pid: Int32
  public var name: String
  public var residentBytes: Int
  public var swappedPages: Int
  /// Pages taken out.
  public var evictions: Int
  /// Pages brought back, from wherever they were.
  public var faults: Int
  /// Of those, the ones that were still in the swap cache.
  public var refaults: Int
  /// Pages that had no content and were made as zeros.
  public var zeroFills: Int
  /// A word for people: what is being done with it now.
  public var state: String

  enum CodingKeys: String, CodingKey {
    case pid, name
    case residentBytes = "resident_bytes"
    case swappedPages = "swapped_pages"
    case evictions, faults, refaults
    case zeroFills = "zero_fills"
    case state
  }

  public init(
    pid: Int32, name: String, residentBytes: Int, swappedPages: Int, evictions: Int, faults: Int,
    refaults: Int, zeroFills: Int, state: String
  ) {
    self.pid = pid
    self.name = name
    self.residentBytes = residentBytes
    self.swappedPages = swappedPages
    self.evictions = evictions
    self.faults = faults
    self.refaults = refaults
    self.zeroFills = zeroFills
    self.state = state
  }
}

/// What a group has done since its first target came, those that have gone included. They only grow.
public struct GroupTotals: Codable, Sendable, Equatable {
  public var evictions: Int
  public var faults: Int
  public var refaults: Int
  public var zeroFills: Int
  public var peakResidentBytes: Int
  public var peakSwappedPages: Int
  /// Targets that ever were in the group.
  public var targets: Int

  enum CodingKeys: String, CodingKey {
    case evictions, faults, refaults
    case zeroFills = "zero_fills"
    case peakResidentBytes = "peak_resident_bytes"
    case peakSwappedPages = "peak_swapped_pages"
    case targets
  }

  public init(
    evictions: Int, faults: Int, refaults: Int, zeroFills: Int, peakResidentBytes: Int,
    peakSwappedPages: Int, targets: Int
  ) {
    self.evictions = evictions
    self.faults = faults
    self.refaults = refaults
    self.zeroFills = zeroFills
    self.peakResidentBytes = peakResidentBytes
    self.peakSwappedPages = peakSwappedPages
    self.targets = targets
  }
}
