import Glibc

/// Standard error, for lines that say what is wrong.
enum StandardError {
  /// Writes `line` and a newline, at once. Nobody can be told if that fails.
  static func writeLine(_ line: String) {
    let bytes = Array("\(line)\n".utf8)
    _ = Glibc.write(STDERR_FILENO, bytes, bytes.count)
  }
}
