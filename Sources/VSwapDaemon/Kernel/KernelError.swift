import Glibc

/// A failed system call: which one, and what the kernel said.
///
/// It is the only form in which errno travels; who needs a domain case maps `code` to it once, at the
/// border of its folder.
struct KernelError: Error, Equatable, CustomStringConvertible {
  /// Name of the call, as in its manual page.
  let call: StaticString
  /// The errno value, positive.
  let code: Int32

  /// ENOMEM, for callers that run out of something before the kernel does.
  static let noMemory = ENOMEM
  /// EOVERFLOW, for counters that are full.
  static let overflow = EOVERFLOW

  /// The table of descriptors is full, this process's or the system's.
  var isLackOfDescriptors: Bool { code == EMFILE || code == ENFILE }

  /// The error of `call`, which failed on this thread just now (reads errno: call it before anything else).
  static func last(_ call: StaticString) -> KernelError {
    KernelError(call: call, code: errno)
  }

  /// Two errors are equal when their codes are; the call only says where it happened.
  static func == (left: KernelError, right: KernelError) -> Bool {
    left.code == right.code
  }

  /// For example "memfd_create: Too many open files (EMFILE)".
  var description: String {
    guard let text = strerrordesc_np(code), let name = strerrorname_np(code) else {
      return "\(call): Unknown error \(code)"
    }
    return "\(call): \(String(cString: text)) (\(String(cString: name)))"
  }
}
