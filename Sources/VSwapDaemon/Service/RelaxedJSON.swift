/// JSON as people write it: with comments, and with commas behind the last of several entries, so that a line can be
/// commented out or in alone.
enum RelaxedJSON {
  /// The text without both, as JSON has it. Lines stay where they are, strings what they are.
  static func strict(_ text: [UInt8]) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(text.count)
    var state = State.between
    var comma: Int?  // where a comma is behind which nothing has come yet
    for (index, byte) in text.enumerated() {
      switch state {
      case .comment where byte != UInt8(ascii: "\n"): continue
      case .comment: state = .between
      case .escape: state = .string
      case .string where byte == UInt8(ascii: "\\"): state = .escape
      case .string where byte == UInt8(ascii: "\""): state = .between
      case .string: break
      case .between where byte == UInt8(ascii: "/") && text.dropFirst(index + 1).first == byte:
        state = .comment
        continue
      case .between:
        if byte == UInt8(ascii: "\"") { state = .string }
        if let last = comma, byte == UInt8(ascii: "}") || byte == UInt8(ascii: "]") { result[last] = UInt8(ascii: " ") }
        if !isBlank(byte) { comma = byte == UInt8(ascii: ",") ? result.count : nil }
      }
      result.append(byte)
    }
    return result
  }

  private enum State {
    case between, string, escape, comment
  }

  private static func isBlank(_ byte: UInt8) -> Bool {
    byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") || byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r")
  }
}
