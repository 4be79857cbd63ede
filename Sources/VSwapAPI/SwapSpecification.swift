/// A swap area as `--swap PATH:SIZE[:PRIO][:discard]` and the configuration file name it.
public struct SwapSpecification: Sendable, Equatable {
  public var path: String
  /// Bytes; nil for all of a file or device that is there.
  public var sizeBytes: Int?
  /// Among ``priorities``; nil for one below all others.
  public var priority: Int?
  /// Free segments are given back to the file system or the device.
  public var discards: Bool

  /// As for swapon(8). The negative ones are given to areas for which none is named.
  public static let priorities = 0...32767
  /// What a priority has to be, for messages.
  public static let priorityRule =
    "a whole number from \(priorities.lowerBound) to \(priorities.upperBound)"

  public init(path: String, sizeBytes: Int?, priority: Int?, discards: Bool = false) {
    self.path = path
    self.sizeBytes = sizeBytes
    self.priority = priority
    self.discards = discards
  }

  /// Reads "PATH:SIZE" or "PATH:SIZE:PRIO", either with ":discard" behind it, from the right, so that the path may have colons. A last number
  /// that is too small for an area is the priority if a size stands before it.
  public init(parsing text: String) throws(SwapSyntaxError) {
    var fields = text.split(separator: ":", omittingEmptySubsequences: false)
    var priority: Int?
    let discards = fields.count > 2 && fields.last == Self.discardWord
    if discards { fields.removeLast() }
    if fields.count > 2, let number = Self.wholeNumber(fields[fields.count - 1]), number < ByteSize.minimumArea,
      (try? ByteSize.parse(String(fields[fields.count - 2]))) != nil
    {
      guard Self.priorities.contains(number) else {
        throw SwapSyntaxError(text: text, reason: "the priority must be \(Self.priorityRule)")
      }
      priority = number
      fields.removeLast()
    }
    guard fields.count > 1, let size = fields.popLast() else {
      throw SwapSyntaxError(text: text, reason: "the size is missing")
    }
    do {
      let bytes = try ByteSize.parse(String(size), minimum: ByteSize.minimumArea)
      self.init(path: fields.joined(separator: ":"), sizeBytes: bytes, priority: priority, discards: discards)
    } catch {
      throw SwapSyntaxError(text: text, reason: "\(error)")
    }
    if path.isEmpty { throw SwapSyntaxError(text: text, reason: "the path is empty") }
  }

  /// Reads several, and makes their paths absolute.
  public static func parse(_ texts: [String]) throws(SwapSyntaxError) -> [SwapSpecification] {
    try texts.map { text throws(SwapSyntaxError) in
      var area = try SwapSpecification(parsing: text)
      area.path = RuntimePaths.absolute(area.path)
      return area
    }
  }

  /// What ``init(parsing:)`` reads as the same area. Only for one with a size.
  public var text: String {
    let fields = [path, sizeBytes.map(String.init), priority.map(String.init), discards ? String(Self.discardWord) : nil]
    return fields.compactMap(\.self).joined(separator: ":")
  }

  private static let discardWord: Substring = "discard"

  private static func wholeNumber(_ digits: Substring) -> Int? {
    digits.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) } ? Int(digits) : nil
  }
}

/// A `--swap` that cannot be used.
public struct SwapSyntaxError: Error, Equatable, CustomStringConvertible {
  /// What the user wrote.
  public let text: String
  public let reason: String

  /// What is wrong, without saying where.
  public var description: String {
    "'\(text)' is not PATH:SIZE[:PRIO][:discard] (as in /var/swap0:2G): \(reason)"
  }
}

extension SwapSpecification: Decodable {
  enum CodingKeys: String, CodingKey, CaseIterable {
    case path, size, priority
    case discards = "discard"
  }

  /// An entry of "swap" in the configuration file: `{"path": "/var/swap0", "size": "2G", "priority": 5}`.
  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    path = try fields.absolutePath(forKey: .path)
    priority = try fields.wholeNumberIfPresent(forKey: .priority)
    discards = try fields.decodeIfPresent(Bool.self, forKey: .discards) ?? false
    if let priority, !Self.priorities.contains(priority) {
      throw fields.invalid(.priority, "must be \(Self.priorityRule)")
    }
    do {
      let size = try fields.decodeIfPresent(String.self, forKey: .size)
      sizeBytes = try size.map { try ByteSize.parse($0, minimum: ByteSize.minimumArea) }
    } catch let error as SizeError {
      throw fields.invalid(.size, "must be a size: \(error)")
    }
  }
}
