import Glibc

/// A process's fair share of the anonymous memory it maps.
enum ProportionalSize {
  /// Pss_Anon of /proc/PID/smaps_rollup in pages: a page mapped by n processes counts 1/n. nil where it cannot be read.
  static func anonymousPages(of processID: Int32) -> Int? {
    let file = open("/proc/\(processID)/smaps_rollup", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    return withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 16) { buffer -> Int? in
      let length = read(file, buffer.baseAddress, buffer.count)
      guard length > 0 else { return nil }
      let text = String(decoding: UnsafeRawBufferPointer(rebasing: buffer[0..<length]), as: UTF8.self)
      for line in text.split(separator: "\n") where line.hasPrefix("Pss_Anon:") {
        let kibibytes = line.dropFirst("Pss_Anon:".count).split(separator: " ").first.flatMap { Int($0) }
        return kibibytes.map { $0 * 1024 / pageSize }
      }
      return nil
    }
  }
}
