import Glibc

/// What the kernel tells everybody of a process.
struct ProcessFacts {
  let parent: Int32
  /// Clock ticks since the start of the machine: with the process id it says which process it is.
  let startTime: UInt64
  let isZombie: Bool

  /// nil if there is no such process.
  init?(_ process: Int32) {
    // The name in parentheses may hold anything, so what counts is behind the last one.
    guard let text = Self.text("/proc/\(process)/stat"), let end = text.lastIndex(of: UInt8(ascii: ")")) else { return nil }
    let fields = String(decoding: text[(end + 1)...], as: UTF8.self).split(separator: " ")
    guard fields.count > 19, let parent = Int32(fields[1]), let startTime = UInt64(fields[19]) else { return nil }
    self.parent = parent
    self.startTime = startTime
    isZombie = fields[0] == "Z" || fields[0] == "X"
  }

  /// All children of all threads; empty where the kernel does not tell.
  static func children(of process: Int32) -> [Int32] {
    guard let tasks = opendir("/proc/\(process)/task") else { return [] }
    defer { closedir(tasks) }
    var result: [Int32] = []
    while let entry = readdir(tasks) {
      let thread = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: Int(NAME_MAX) + 1) { String(cString: $0) }
      }
      guard thread != ".", thread != "..", let text = text("/proc/\(process)/task/\(thread)/children") else { continue }
      result += String(decoding: text, as: UTF8.self).split(separator: " ").compactMap { Int32($0) }
    }
    return result
  }

  /// A file of /proc; nil if it cannot be read.
  static func text(_ path: String) -> [UInt8]? {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var result: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = read(file, &part, part.count)
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { return count == 0 ? result : nil }
      result += part[..<count]
    }
  }
}
