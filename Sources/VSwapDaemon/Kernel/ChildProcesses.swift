import Glibc

/// Who was made by whom, as the kernel has it.
enum ChildProcesses {
  /// Threads of a process that are asked.
  private static let mostThreads = 256

  /// Living children of a process, however they were made; those whose maker has ended are somebody else's.
  static func of(_ processID: Int32) -> [Int32] {
    guard let threads = opendir("/proc/\(processID)/task") else { return [] }
    defer { closedir(threads) }
    var result: [Int32] = []
    var asked = 0
    while asked < mostThreads, let entry = readdir(threads) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      guard let thread = Int32(name) else { continue }
      asked += 1
      let children = SmallFile.text("/proc/\(processID)/task/\(thread)/children") ?? ""
      result += children.split(separator: " ").compactMap { Int32($0) }
    }
    return result
  }
}
