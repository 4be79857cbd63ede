/// Names of files, groups and programs in one line of text: they may hold newlines, control sequences of a terminal,
/// and bytes that are no UTF-8.
public enum EscapedText {
  /// Bytes that are printable ASCII stay, others become `\xNN`. What comes out stays as it is if it is escaped again.
  public static func ascii(_ bytes: some Sequence<UInt8>) -> String {
    var text: [UInt8] = []
    for byte in bytes {
      if (0x20...0x7E).contains(byte) { text.append(byte) } else { text += escape(byte) }
    }
    return String(decoding: text, as: UTF8.self)
  }

  /// Characters that a terminal shows stay; the bytes of others become `\xNN`.
  public static func line(_ text: String) -> String {
    var result: [UInt8] = []
    for scalar in text.unicodeScalars {
      let bytes = Array(String(scalar).utf8)
      result += isShown(scalar) ? bytes : bytes.flatMap(escape)
    }
    return String(decoding: result, as: UTF8.self)
  }

  /// A path, as ``line(_:)`` has it. A backslash is escaped too, so that ``path(shown:)`` finds the path again.
  public static func shown(path: String) -> String {
    line(path.split(separator: "\\", omittingEmptySubsequences: false).joined(separator: "\\x5C"))
  }

  /// The path that is shown so; nil if none is.
  public static func path(shown text: String) -> String? {
    var bytes: [UInt8] = []
    var rest = Array(text.utf8)[...]
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "\\") else {
        bytes.append(byte)
        continue
      }
      guard rest.popFirst() == UInt8(ascii: "x"), rest.count >= 2,
        let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16)
      else { return nil }
      rest = rest.dropFirst(2)
      bytes.append(value)
    }
    guard let path = String(validating: bytes, as: UTF8.self), shown(path: path) == text else { return nil }
    return path
  }

  private static func isShown(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse: false
    default: true
    }
  }

  private static func escape(_ byte: UInt8) -> [UInt8] {
    let digits = Array("0123456789ABCDEF".utf8)
    return [UInt8(ascii: "\\"), UInt8(ascii: "x"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
  }
}
