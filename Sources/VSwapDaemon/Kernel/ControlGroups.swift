/// What the control groups say that this process is in.
enum ControlGroups {
  /// The content of a file in each group of this process and in those above it, as far as it can see them; innermost first. `file` is version 2's name for
  /// it, `older` version 1's.
  ///
  /// - Parameter text: reads a file; nil: there is none.
  static func values(
    of file: String, older: String, controller: String, text: (String) -> String? = SmallFile.text
  ) -> [String] {
    guard let groups = text("/proc/self/cgroup") else { return [] }
    return groups.split(separator: "\n").flatMap { line -> [String] in
      // Hierarchy, controllers, path: "0::/a/b" is version 2's.
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3 else { return [] }
      if fields[1].isEmpty { return values("/sys/fs/cgroup", fields[2], file, text) }
      guard fields[1].split(separator: ",").contains(Substring(controller)) else { return [] }
      return values("/sys/fs/cgroup/\(controller)", fields[2], older, text)
    }
  }

  /// The group itself and those above it.
  private static func values(_ root: String, _ path: Substring, _ file: String, _ text: (String) -> String?) -> [String] {
    var names = path.split(separator: "/")
    var result: [String] = []
    while true {
      let place = ([root] + names.map(String.init) + [file]).joined(separator: "/")
      if let value = text(place)?.split(separator: "\n").first { result.append(String(value)) }
      guard names.popLast() != nil else { return result }
    }
  }

  /// Most memory that this process and those around it may have, in bytes; nil: no group says so.
  static func memoryLimit(text: (String) -> String? = SmallFile.text) -> Int? {
    values(of: "memory.max", older: "memory.limit_in_bytes", controller: "memory", text: text).compactMap { Int($0) }.min()
  }
}
