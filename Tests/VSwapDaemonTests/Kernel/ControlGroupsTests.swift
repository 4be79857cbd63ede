import Testing

@testable import VSwapDaemon

@Suite struct ControlGroupsTests {
  private func memoryLimit(_ files: [String: String]) -> Int? { ControlGroups.memoryLimit { files[$0] } }

  /// The least of the group's own limit and of those above it.
  @Test func theMemoryLimitOfVersion2() {
    #expect(
      memoryLimit([
        "/proc/self/cgroup": "0::/a.slice/b.service\n", "/sys/fs/cgroup/a.slice/b.service/memory.max": "max\n",
        "/sys/fs/cgroup/a.slice/memory.max": "1073741824\n", "/sys/fs/cgroup/memory.max": "2147483648\n",
      ]) == 1 << 30)
    #expect(memoryLimit(["/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"]) == nil)
    #expect(memoryLimit([:]) == nil)
  }

  @Test func theMemoryLimitOfVersion1() {
    #expect(
      memoryLimit([
        "/proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/x\n0::/\n",
        "/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "536870912\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
      ]) == 512 << 20)
    #expect(memoryLimit(["/proc/self/cgroup": "x\n4:memory\n:::\n"]) == nil)
  }
}
