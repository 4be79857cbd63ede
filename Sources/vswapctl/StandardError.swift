import Glibc
import VSwapAPI

/// Standard error, for lines that say what is wrong.
enum StandardError {
  /// Writes `line` and a newline, at once; names in it cannot add another line. Nobody can be told if that fails.
  static func writeLine(_ line: String) {
    let bytes = Array("\(EscapedText.line(line))\n".utf8)
    _ = Glibc.write(STDERR_FILENO, bytes, bytes.count)
  }
}
