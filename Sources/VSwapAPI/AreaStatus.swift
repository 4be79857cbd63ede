/// A swap area, as in `GET /v1/areas` and the status.
public struct AreaStatus: Codable, Sendable, Equatable {
  public enum Kind: String, Codable, Sendable {
    case file, device
  }

  public var path: String
  public var type: Kind
  public var sizeBytes: Int
  public var usedBytes: Int
  /// Physical slots in use.
  public var slots: Int
  public var priority: Int
  /// "active", "draining", "full", "no_space" or "faulty".
  public var state: String
  /// false: its file system has no direct I/O, so reads and writes go through the page cache.
  public var direct: Bool
  /// Free segments are given back to the file system or the device.
  public var discard: Bool
  /// Slots that could not be read, or had another content.
  public var readErrors: Int
  /// Writes that failed.
  public var writeErrors: Int

  enum CodingKeys: String, CodingKey {
    case path, type
    case sizeBytes = "size_bytes"
    case usedBytes = "used_bytes"
    case slots, priority, state, direct, discard
    case readErrors = "read_errors"
    case writeErrors = "write_errors"
  }

  public init(
    path: String, type: Kind, sizeBytes: Int, usedBytes: Int, slots: Int, priority: Int, state: String,
    direct: Bool, discard: Bool = false, readErrors: Int, writeErrors: Int
  ) {
    self.path = path
    self.type = type
    self.sizeBytes = sizeBytes
    self.usedBytes = usedBytes
    self.slots = slots
    self.priority = priority
    self.state = state
    self.direct = direct
    self.discard = discard
    self.readErrors = readErrors
    self.writeErrors = writeErrors
  }
}
