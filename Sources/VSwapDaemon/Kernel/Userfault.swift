import CUserfault
import Glibc

/// What became of an attempt to fill pages of a target. errno becomes a case here and nowhere else.
enum FillOutcome {
  /// That many pages, at least one, are mapped now, and whoever waited for them is awake.
  case filled(Int)
  /// The first page is mapped already. Nobody was woken.
  case exists
  /// An event is unread, or the thread that caused it has not run since: read events, look up again, try again.
  case changing
  /// No registered mapping holds the range (a border was crossed, or it is unmapped). Nobody was woken.
  case unmapped
  /// The address space has gone.
  case gone
  /// The kernel is short of memory, or the call failed in a way that the design rules out: errno.
  case failed(Int32)
}

/// A message read from a userfaultfd.
enum UserfaultMessage {
  /// Byte address of the touched page, whether it was a write, and the thread in the daemon's or target's namespace.
  case fault(address: UInt64, write: Bool, thread: Int32)
  /// The child's userfaultfd, in this process's descriptor table already.
  case fork(descriptor: Int32)
  /// Byte ranges. `length` is the old length, also where the mapping grew.
  case remap(from: UInt64, to: UInt64, length: UInt64)
  case remove(start: UInt64, end: UInt64)
  case unmap(start: UInt64, end: UInt64)
  case unknown
}

/// A userfaultfd whose context belongs to a target. A trivial handle: whoever made it closes it.
///
/// Addresses and lengths are in bytes and multiples of the page size. All calls may come from any thread.
struct Userfault: Sendable {
  let descriptor: Int32
  private(set) var reading = Reading.alone

  init(descriptor: Int32) { self.descriptor = descriptor }

  /// Negotiates the features that a non-cooperative monitor needs. Fork events need CAP_SYS_PTRACE of this process.
  func negotiate() throws(KernelError) {
    var features: UInt64 = 0
    let status = vs_uffd_api(descriptor, UInt64(vs_features_wanted()), &features)
    guard status == 0 else { throw KernelError(call: "UFFDIO_API", code: -status) }
  }

  /// Registers for missing pages. `code` of the error: EBUSY where another context owns the mapping.
  func register(_ start: UInt64, _ length: UInt64) throws(KernelError) {
    let status = vs_uffd_register(descriptor, start, length)
    guard status == 0 else { throw KernelError(call: "UFFDIO_REGISTER", code: -status) }
  }

  /// Nothing is registered in the range afterwards. Unmapped ranges are no error.
  func unregister(_ start: UInt64, _ length: UInt64) {
    _ = vs_uffd_unregister(descriptor, start, length)
  }

  @inline(__always)
  func copy(to address: UInt64, from source: UnsafeRawPointer, length: Int) -> FillOutcome {
    Self.outcome(vs_uffd_copy(descriptor, address, source, UInt64(length)))
  }

  @inline(__always)
  func zero(_ address: UInt64, length: Int) -> FillOutcome {
    Self.outcome(vs_uffd_zeropage(descriptor, address, UInt64(length)))
  }

  /// Makes every access to the pages raise SIGBUS. Wakes, whatever became of it: who faults again is served again.
  @discardableResult
  func poison(_ address: UInt64, length: Int) -> FillOutcome {
    let outcome = Self.outcome(vs_uffd_poison(descriptor, address, UInt64(length)))
    wake(address, length: length)
    return outcome
  }

  @inline(__always)
  func wake(_ address: UInt64, length: Int) {
    _ = vs_uffd_wake(descriptor, address, UInt64(length))
  }

  /// Whether the address space lives, and whether it is changing, asked at an address that is never registered.
  func probe(at address: UInt64) -> FillOutcome {
    Self.outcome(vs_uffd_zeropage(descriptor, address, UInt64(pageSize)))
  }

  /// Whether the page lies in a registered mapping; nil: the address space is changing, or has gone. UFFDIO_CONTINUE is for shared memory: of
  /// anonymous memory the kernel says EINVAL, but only after it found the mapping registered.
  func isRegistered(_ address: UInt64) -> Bool? {
    switch -vs_uffd_continue(descriptor, address, UInt64(pageSize)) {
    case Int64(EINVAL): true
    case Int64(ENOENT): false
    default: nil
    }
  }

  @inline(__always)
  private static func outcome(_ result: Int64) -> FillOutcome {
    if result > 0 { return .filled(Int(result) / pageSize) }
    switch Int32(truncatingIfNeeded: -result) {
    case EEXIST: return .exists
    case EAGAIN, 0: return .changing
    case ENOENT, EINVAL: return .unmapped
    case ESRCH: return .gone
    default: return .failed(Int32(truncatingIfNeeded: -result))
    }
  }

  /// How it is read, given that O_NONBLOCK is a flag of the open file, which whoever else has it can clear.
  enum Reading: Sendable {
    /// Nobody else has it.
    case alone
    /// The kernel does not wait, whatever the flag says.
    case withoutWaiting
    /// It is read only when there is something to read, and the flag is looked at with the same call. Only if the target clears it right then, and
    /// what there was to read has gone, does the read wait: whoever waits for this thread in vain interrupts it.
    case checked
  }

  /// What `read` says beside a number of messages and -errno: O_NONBLOCK had been cleared.
  static let blocked = Int.min

  /// Reads messages without blocking; returns how many, 0 for none, `blocked`, or -errno: try again later. EMFILE, ENFILE: the next one is a
  /// fork, whose thread waits until there is a descriptor for its child.
  @inline(__always)
  func read(into messages: UnsafeMutablePointer<uffd_msg>, capacity: Int) -> Int {
    let bytes = capacity * MemoryLayout<uffd_msg>.stride
    while true {
      if reading == .checked {
        let ready = vs_uffd_has_message(descriptor)
        if ready < 0 {
          unblock()
          return Self.blocked
        }
        if ready == 0 { return 0 }
      }
      let length =
        reading == .withoutWaiting ? vs_uffd_read_now(descriptor, messages, bytes) : vs_uffd_read(descriptor, messages, bytes)
      if length >= 0 { return Int(length) / MemoryLayout<uffd_msg>.stride }
      if length == -Int64(EAGAIN) { return 0 }
      if length != -Int64(EINTR) { return Int(length) }
    }
  }

  /// As one that the target has as well.
  mutating func share() { reading = vs_uffd_can_read_now(descriptor) != 0 ? .withoutWaiting : .checked }

  /// Undoes that somebody cleared O_NONBLOCK.
  func unblock() { _ = vs_uffd_unblock(descriptor) }

  @inline(__always)
  static func decode(_ message: uffd_msg) -> UserfaultMessage {
    switch UInt32(message.event) {
    case vs_event_pagefault():
      return .fault(
        address: message.arg.pagefault.address & ~UInt64(pageSize - 1),
        write: message.arg.pagefault.flags & UInt64(vs_pagefault_write()) != 0,
        thread: Int32(bitPattern: message.arg.pagefault.feat.ptid))
    case vs_event_fork(): return .fork(descriptor: Int32(bitPattern: message.arg.fork.ufd))
    case vs_event_remap():
      return .remap(from: message.arg.remap.from, to: message.arg.remap.to, length: message.arg.remap.len)
    case vs_event_remove(): return .remove(start: message.arg.remove.start, end: message.arg.remove.end)
    case vs_event_unmap(): return .unmap(start: message.arg.remove.start, end: message.arg.remove.end)
    default: return .unknown
    }
  }
}
