import CUring
import Glibc

/// An io_uring with one registered buffer and a table of registered files. A trivial handle, used by one thread.
///
/// Registered files, so that a descriptor that was closed and given to something else meanwhile is never read or written.
struct Uring: @unchecked Sendable {
  private let ring: UnsafeMutablePointer<vs_uring>

  /// `entries` operations can be queued, twice as many be under way; `buffer` is pinned. Throws where the kernel forbids io_uring
  /// (kernel.io_uring_disabled) or locked memory is short.
  static func create(
    entries: Int, files: Int, buffer: UnsafeMutableRawPointer, length: Int
  ) throws(KernelError) -> Uring {
    var ring: UnsafeMutablePointer<vs_uring>?
    let status = vs_uring_create(&ring, UInt32(entries), UInt32(files), buffer, UInt64(length))
    guard status == 0, let ring else { throw KernelError(call: "io_uring_setup", code: -status) }
    return Uring(ring: ring)
  }

  /// Waits for what is under way.
  func destroy() { vs_uring_destroy(ring) }

  /// Readable when something has completed.
  var descriptor: Int32 { vs_uring_descriptor(ring) }

  /// -1 for none.
  func setFile(_ place: Int, _ descriptor: Int32) throws(KernelError) {
    let status = vs_uring_set_file(ring, UInt32(place), descriptor)
    guard status == 0 else { throw KernelError(call: "io_uring_register", code: -status) }
  }

  /// Queues a read into, or a write from, the registered buffer. false: there is no entry; submit first.
  func queue(
    write: Bool, file: Int, buffer: UnsafeMutableRawPointer, length: Int, offset: Int, token: UInt64
  ) -> Bool {
    vs_uring_queue(ring, write ? 1 : 0, UInt32(file), buffer, UInt32(length), UInt64(offset), token) != 0
  }

  /// Gives the kernel what is queued, and waits until `completions` have come. false: it takes no more just now (out of memory, or
  /// completions have to be taken first); what is queued stays queued.
  @discardableResult
  func submit(waitingFor completions: Int = 0) -> Bool {
    while true {
      let status = vs_uring_submit(ring, UInt32(completions))
      if status == -EINTR { continue }
      return status >= 0 && vs_uring_queued(ring) == 0
    }
  }

  /// Whether something is queued that the kernel did not take.
  var hasQueued: Bool { vs_uring_queued(ring) != 0 }

  /// A completed operation: its token, and bytes or -errno.
  func completed() -> (token: UInt64, result: Int)? {
    var token: UInt64 = 0
    var result: Int32 = 0
    guard vs_uring_complete(ring, &token, &result) != 0 else { return nil }
    return (token, Int(result))
  }
}
