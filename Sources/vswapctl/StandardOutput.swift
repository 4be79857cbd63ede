import ArgumentParser
import Glibc

/// Standard output, with its errors noticed: `status --watch` must end when nobody reads it any more.
enum StandardOutput {
  static var isTerminal: Bool {
    isatty(STDOUT_FILENO) == 1
  }

  /// Writes all of `text`.
  ///
  /// - Throws: ``CommandFailure``; `ExitCode`, as of a process that SIGPIPE ended, when nobody reads any
  ///   more.
  static func write(_ text: String) throws {
    try write(Array(text.utf8))
  }

  /// Writes all of `bytes`; throws like ``write(_:)-(String)``.
  static func write(_ bytes: [UInt8]) throws {
    var rest = bytes[...]
    while !rest.isEmpty {
      let written = rest.withUnsafeBytes { Glibc.write(STDOUT_FILENO, $0.baseAddress, $0.count) }
      if written < 0 && errno == EINTR { continue }
      if written < 0 && errno == EPIPE { throw ExitCode(128 + SIGPIPE) }
      guard written >= 0 else {
        throw CommandFailure(message: "cannot write to standard output: \(String(cString: strerror(errno)))")
      }
      rest = rest.dropFirst(written)
    }
  }
}
