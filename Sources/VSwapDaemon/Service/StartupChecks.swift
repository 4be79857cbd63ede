import CUserfault
import Glibc

/// What the machine must offer, asked once at the start: each thing that is missing is one line that says what to do.
enum StartupChecks {
  /// Opens /dev/userfaultfd and tries the features that nothing works without.
  static func openDevice() throws(StartupError) -> Int32 {
    guard sysconf(Int32(_SC_PAGESIZE)) == pageSize else {
      throw StartupError(message: "the kernel's page size is not 4096; vswapd knows no other one")
    }
    let device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)
    if device < 0 { throw deviceError(KernelError.last("open")) }
    do throws(StartupError) {
      try probe(device)
    } catch {
      close(device)
      throw error
    }
    return device
  }

  private static func deviceError(_ error: KernelError) -> StartupError {
    switch error.code {
    case ENOENT, ENODEV, ENXIO:
      StartupError(message: "there is no /dev/userfaultfd; a kernel of 6.8 or later with CONFIG_USERFAULTFD is needed")
    case EACCES, EPERM:
      StartupError(message: "/dev/userfaultfd may not be opened; run as root, or give this user access to it")
    default: StartupError(message: "/dev/userfaultfd cannot be opened (\(error)); check the system's limits")
    }
  }

  private static func probe(_ device: Int32) throws(StartupError) {
    var features: UInt64 = 0
    let plain = vs_uffd_new(device)
    guard plain >= 0 else {
      throw StartupError(message: "the kernel gives no userfaultfd (errno \(-plain)); a kernel of 6.8 or later is needed")
    }
    let status = vs_uffd_api(plain, 0, &features)
    close(plain)
    guard status == 0, features & vs_features_needed() == vs_features_needed() else {
      throw StartupError(message: "this kernel lacks UFFDIO_MOVE or events of userfaultfd; Linux 6.8 or later is needed")
    }
    let full = vs_uffd_new(device)
    guard full >= 0 else { throw StartupError(message: "out of file descriptors; raise the limit (ulimit -n)") }
    defer { close(full) }
    let negotiated = vs_uffd_api(full, vs_features_wanted(), &features)
    guard negotiated == 0 else {
      throw StartupError(
        message: "CAP_SYS_PTRACE is missing, without which forks cannot be followed; run as root or grant it")
    }
  }
}
