/// The tier of compressed pages.
public struct PoolStatus: Codable, Sendable, Equatable {
  public enum State: String, Codable, Sendable {
    case ok
    /// At its limit: eviction has stopped, groups may exceed theirs.
    case full
  }

  /// Compressed pages.
  public var objects: Int
  /// Their size before compression.
  public var originalBytes: Int
  /// Their size after it.
  public var compressedBytes: Int
  /// The memory the pool occupies, gaps included.
  public var arenaBytes: Int
  /// 0 for none.
  public var limitBytes: Int
  public var state: State
  /// Bytes before compression of all that was ever stored, whether it has left since or not.
  public var storedOriginalBytes: Int
  /// The same after compression.
  public var storedCompressedBytes: Int
  /// Resident pages whose compressed content is kept, in case they leave again unchanged.
  public var cleanCopies: Int
  /// Pages that did, since the start.
  public var reusedCopies: Int

  enum CodingKeys: String, CodingKey {
    case objects
    case originalBytes = "original_bytes"
    case compressedBytes = "compressed_bytes"
    case arenaBytes = "arena_bytes"
    case limitBytes = "limit_bytes"
    case state
    case storedOriginalBytes = "stored_original_bytes"
    case storedCompressedBytes = "stored_compressed_bytes"
    case cleanCopies = "clean_copies"
    case reusedCopies = "reused_copies"
  }

  public init(
    objects: Int, originalBytes: Int, compressedBytes: Int, arenaBytes: Int, limitBytes: Int, state: State,
    storedOriginalBytes: Int = 0, storedCompressedBytes: Int = 0, cleanCopies: Int = 0, reusedCopies: Int = 0
  ) {
    self.objects = objects
    self.originalBytes = originalBytes
    self.compressedBytes = compressedBytes
    self.arenaBytes = arenaBytes
    self.limitBytes = limitBytes
    self.state = state
    self.storedOriginalBytes = storedOriginalBytes
    self.storedCompressedBytes = storedCompressedBytes
    self.cleanCopies = cleanCopies
    self.reusedCopies = reusedCopies
  }
}
