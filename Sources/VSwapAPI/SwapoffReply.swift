/// One line of the reply to POST /v1/swapoff. Each area has some lines of progress and ends with its result.
public enum SwapoffLine: Sendable, Equatable {
  case progress(SwapoffProgressLine)
  case result(SwapoffReply)
  /// It went wrong after the first line; it is the last one.
  case error(ControlError)
}

/// How far the retreat from an area is.
public struct SwapoffProgressLine: Codable, Sendable, Equatable {
  public var path: String
  public var slotsDone: Int
  public var slotsTotal: Int
  public var bytesDone: Int
  public var bytesTotal: Int
  /// Since it began.
  public var seconds: Double

  enum CodingKeys: String, CodingKey {
    case path
    case slotsDone = "slots_done"
    case slotsTotal = "slots_total"
    case bytesDone = "bytes_done"
    case bytesTotal = "bytes_total"
    case seconds
  }

  public init(
    path: String, slotsDone: Int, slotsTotal: Int, bytesDone: Int, bytesTotal: Int, seconds: Double
  ) {
    self.path = path
    self.slotsDone = slotsDone
    self.slotsTotal = slotsTotal
    self.bytesDone = bytesDone
    self.bytesTotal = bytesTotal
    self.seconds = seconds
  }
}

/// What became of an area and of what was in it.
public struct SwapoffReply: Codable, Sendable, Equatable {
  public enum State: String, Codable, Sendable {
    /// It is no area any more. In a dry run: it could be retired.
    case off
    /// Somebody ended the swapoff; it is active again.
    case cancelled
    /// There is no room for what is in it; it stays active.
    case refused
  }

  public var path: String
  /// Physical slots that were moved, and their bytes.
  public var slots: Int
  public var bytes: Int
  /// Slots that went into programs, into the pool, and into other areas.
  public var toTarget: Int
  public var toPool: Int
  public var toAreas: Int
  /// Slots that could not be read. Their pages raise SIGBUS.
  public var lost: Int
  public var wallSeconds: Double
  /// CPU time of the daemon.
  public var userSeconds: Double
  public var systemSeconds: Double
  public var state: State
  /// Why it was refused, with the figures.
  public var reason: String?

  enum CodingKeys: String, CodingKey {
    case path, slots, bytes
    case toTarget = "to_target"
    case toPool = "to_pool"
    case toAreas = "to_areas"
    case lost
    case wallSeconds = "wall_seconds"
    case userSeconds = "user_seconds"
    case systemSeconds = "system_seconds"
    case state, reason
  }

  public init(
    path: String, slots: Int = 0, bytes: Int = 0, toTarget: Int = 0, toPool: Int = 0, toAreas: Int = 0,
    lost: Int = 0, wallSeconds: Double = 0, userSeconds: Double = 0, systemSeconds: Double = 0, state: State,
    reason: String? = nil
  ) {
    self.path = path
    self.slots = slots
    self.bytes = bytes
    self.toTarget = toTarget
    self.toPool = toPool
    self.toAreas = toAreas
    self.lost = lost
    self.wallSeconds = wallSeconds
    self.userSeconds = userSeconds
    self.systemSeconds = systemSeconds
    self.state = state
    self.reason = reason
  }
}

extension SwapoffLine: Codable {
  private enum Marks: String, CodingKey {
    case state, error
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: Marks.self)
    if fields.contains(.error) {
      self = .error(try ErrorReply(from: decoder).error)
    } else if fields.contains(.state) {
      self = .result(try SwapoffReply(from: decoder))
    } else {
      self = .progress(try SwapoffProgressLine(from: decoder))
    }
  }

  public func encode(to encoder: any Encoder) throws {
    switch self {
    case .progress(let line): try line.encode(to: encoder)
    case .result(let reply): try reply.encode(to: encoder)
    case .error(let error): try ErrorReply(error: error).encode(to: encoder)
    }
  }
}
