/// Sizes as people write and read them: powers of 1024.
public enum ByteSize {
  /// Smallest memory limit of a group: below it a program's own start-up does not fit. Bytes.
  public static let minimumLimit = 4 << 20
  /// Smallest limit of the pool of compressed pages. Bytes.
  public static let minimumPoolLimit = 1 << 20
  /// Smallest swap area. Bytes.
  public static let minimumArea = 2 << 20

  /// Reads "262144", "256K", "64M" or "2G" (either case).
  ///
  /// - Returns: bytes, not negative.
  /// - Throws: ``SizeError`` when `text` is anything else, or more than `Int.max` bytes.
  public static func parse(_ text: String) throws(SizeError) -> Int {
    var digits = Substring(text)
    var shift = 0
    if let suffix = digits.last, let power = exponents[suffix] {
      digits.removeLast()
      shift = power
    }
    guard !digits.isEmpty, digits.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) })
    else { throw SizeError(text: text, reason: .malformed) }
    guard let number = Int(digits), number <= Int.max >> shift else {
      throw SizeError(text: text, reason: .tooLarge)
    }
    return number << shift
  }

  /// Reads a size like ``parse(_:)``, and refuses one below `minimum` bytes.
  public static func parse(_ text: String, minimum: Int) throws(SizeError) -> Int {
    let bytes = try parse(text)
    guard bytes >= minimum else {
      throw SizeError(text: text, reason: .tooSmall(minimum: minimum))
    }
    return bytes
  }

  /// Bytes of so many pages of 4096; of more than can be counted, the most that can.
  public static func ofPages(_ pages: Int) -> Int {
    let bytes = pages.multipliedReportingOverflow(by: 4096)
    return bytes.overflow ? (pages < 0 ? .min : .max) : bytes.partialValue
  }

  /// For example "0 B", "512 B", "63.8 MiB", "1.5 GiB": one decimal from KiB upwards.
  public static func format(_ bytes: Int) -> String {
    var tenths = bytes.magnitude.multipliedReportingOverflow(by: 10)
    guard bytes.magnitude >= 1024, !tenths.overflow else { return "\(bytes) B" }
    var unit = 0
    repeat {
      // Rounded, without a sum that may not fit.
      tenths.partialValue = tenths.partialValue / 1024 + (tenths.partialValue % 1024 >= 512 ? 1 : 0)
      unit += 1
    } while tenths.partialValue >= 10240 && unit < units.count
    let sign = bytes < 0 ? "-" : ""
    return "\(sign)\(tenths.partialValue / 10).\(tenths.partialValue % 10) \(units[unit - 1])"
  }

  private static let exponents: [Character: Int] = ["K": 10, "k": 10, "M": 20, "m": 20, "G": 30, "g": 30]
  private static let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
}

/// A size that cannot be used.
public struct SizeError: Error, Equatable, CustomStringConvertible {
  public enum Reason: Equatable, Sendable {
    case malformed
    case tooLarge
    /// Below `minimum` bytes.
    case tooSmall(minimum: Int)
  }
  /// What the user wrote.
  public let text: String
  public let reason: Reason

  /// What is wrong, without saying where: "'64X' is not a size (a number with K, M or G, as in 64M)".
  public var description: String {
    switch reason {
    case .malformed: "'\(text)' is not a size (a whole number with K, M or G behind it, as in 64M)"
    case .tooLarge: "'\(text)' is more than this machine can address"
    case .tooSmall(let minimum): "'\(text)' is too small (at least \(Self.short(minimum)))"
    }
  }

  /// As ``ByteSize/parse(_:)`` reads it: "4M", "4K", "1000".
  private static func short(_ bytes: Int) -> String {
    if bytes % (1 << 20) == 0 { return "\(bytes >> 20)M" }
    return bytes % (1 << 10) == 0 ? "\(bytes >> 10)K" : "\(bytes)"
  }
}
