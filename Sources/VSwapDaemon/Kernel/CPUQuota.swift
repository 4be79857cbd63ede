/// Limits of CPU time that control groups put on this process.
enum CPUQuota {
  /// Whether a group that this process is in has one, as far as it can see them.
  static var isSet: Bool {
    guard let groups = SmallFile.text("/proc/self/cgroup") else { return false }
    for line in groups.split(separator: "\n") {
      // Hierarchy, controllers, path: "0::/a/b" is version 2's.
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3 else { continue }
      if fields[1].isEmpty {
        if isLimited("/sys/fs/cgroup", fields[2], "cpu.max") { return true }
      } else if fields[1].split(separator: ",").contains("cpu") {
        if isLimited("/sys/fs/cgroup/cpu", fields[2], "cpu.cfs_quota_us") { return true }
      }
    }
    return false
  }

  /// The group itself and those above it.
  private static func isLimited(_ root: String, _ path: Substring, _ file: String) -> Bool {
    var names = path.split(separator: "/")
    while true {
      let place = ([root] + names.map(String.init) + [file]).joined(separator: "/")
      if let value = SmallFile.text(place), let first = value.first, first.isNumber { return true }
      guard names.popLast() != nil else { return false }
    }
  }
}
