/// Limits of CPU time that control groups put on this process.
enum CPUQuota {
  /// Whether a group that this process is in has one, as far as it can see them.
  static var isSet: Bool {
    ControlGroups.values(of: "cpu.max", older: "cpu.cfs_quota_us", controller: "cpu").contains { $0.first?.isNumber == true }
  }
}
