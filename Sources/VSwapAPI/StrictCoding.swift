import FoundationEssentials

extension Decoder {
  /// The container of an object that may hold the keys of `Keys` and no other.
  public func strictContainer<Keys: CodingKey & CaseIterable>(
    keyedBy keys: Keys.Type
  ) throws -> KeyedDecodingContainer<Keys> {
    let known = Keys.allCases.map(\.stringValue)
    for key in try container(keyedBy: AnyKey.self).allKeys where !known.contains(key.stringValue) {
      throw DecodingError.dataCorrupted(
        .init(
          codingPath: [key],
          debugDescription: "is not known (known: \(known.joined(separator: ", ")))"))
    }
    return try container(keyedBy: keys)
  }
}

extension KeyedDecodingContainer {
  /// An integer. The decoder calls a fraction or a number out of range invalid JSON; here it is an error of
  /// the key.
  public func wholeNumber<Number: FixedWidthInteger & Decodable>(forKey key: Key) throws -> Number {
    do {
      return try decode(Number.self, forKey: key)
    } catch  where contains(key) {
      throw invalid(key, "must be a whole number from \(Number.min) to \(Number.max)")
    }
  }

  /// An integer, or nil where the key is missing or null.
  public func wholeNumberIfPresent<Number: FixedWidthInteger & Decodable>(forKey key: Key) throws -> Number? {
    guard contains(key), try !decodeNil(forKey: key) else { return nil }
    return try wholeNumber(forKey: key)
  }

  /// The error for a value of the right type that cannot be used. `reason` follows the key's name.
  public func invalid(_ key: Key, _ reason: String) -> DecodingError {
    .dataCorrupted(.init(codingPath: codingPath + [key], debugDescription: reason))
  }
}

extension DecodingError {
  /// One line for whoever wrote the JSON: "'bytes' must be a whole number", "it is not valid JSON".
  public var explanation: String {
    switch self {
    case .keyNotFound(let key, _):
      return "'\(key.stringValue)' is missing"
    case .typeMismatch(let type, let context), .valueNotFound(let type, let context):
      return "\(Self.name(context.codingPath)) must be \(Self.noun(type))"
    case .dataCorrupted(let context):
      // With a key it is one of ours.
      guard !context.codingPath.isEmpty else { return "it is not valid JSON" }
      return "\(Self.name(context.codingPath)) \(context.debugDescription)"
    @unknown default:
      return "it is not what was expected"
    }
  }

  private static func name(_ path: [any CodingKey]) -> String {
    path.isEmpty ? "it" : "'" + path.map(\.stringValue).joined(separator: ".") + "'"
  }

  private static func noun(_ type: any Any.Type) -> String {
    switch type {
    case is String.Type: "a string"
    case is Bool.Type: "true or false"
    case is any BinaryInteger.Type: "a whole number"
    case is [Any].Type: "a list"
    default: "an object"
    }
  }
}

/// Any key of an object, to find out which ones are there.
private struct AnyKey: CodingKey {
  let stringValue: String
  var intValue: Int? { nil }

  init(stringValue: String) {
    self.stringValue = stringValue
  }

  init?(intValue: Int) {
    nil
  }
}
