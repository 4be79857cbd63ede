import CUserfault
import Glibc
import Testing

@testable import VSwapDaemon

/// O_NONBLOCK belongs to the open file, which the target has as well as the daemon.
@Suite struct UserfaultReadTests {
  private static func make() -> Int32 {
    let device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)
    guard device >= 0 else { return -1 }
    defer { close(device) }
    let descriptor = vs_uffd_new(device)
    var features: UInt64 = 0
    guard descriptor >= 0, vs_uffd_api(descriptor, 0, &features) == 0 else { return -1 }
    return descriptor
  }

  private static let canMake: Bool = {
    let descriptor = make()
    if descriptor >= 0 { close(descriptor) }
    return descriptor >= 0
  }()

  @Test(.enabled(if: canMake, "it takes /dev/userfaultfd"))
  func readingDoesNotWaitWhateverTheTargetDoesToTheFlag() throws {
    var uffd = Userfault(descriptor: Self.make())
    defer { close(uffd.descriptor) }
    let messages = UnsafeMutablePointer<uffd_msg>.allocate(capacity: 4)
    defer { messages.deallocate() }
    #expect(uffd.read(into: messages, capacity: 4) == 0)
    uffd.share()
    let flags = fcntl(uffd.descriptor, F_GETFL)
    try #require(flags >= 0 && fcntl(uffd.descriptor, F_SETFL, flags & ~O_NONBLOCK) == 0)
    let expected = uffd.reading == .withoutWaiting ? 0 : Userfault.blocked
    #expect(uffd.read(into: messages, capacity: 4) == expected)
    uffd.unblock()
    #expect(fcntl(uffd.descriptor, F_GETFL) & O_NONBLOCK != 0)
    #expect(uffd.read(into: messages, capacity: 4) == 0)
  }

  /// Where the kernel waits all the same, somebody who waits for the pager ends that.
  @Test(.enabled(if: canMake, "it takes /dev/userfaultfd"))
  func aReadThatWaitsIsInterrupted() throws {
    let descriptor = Self.make()
    defer { close(descriptor) }
    try #require(fcntl(descriptor, F_SETFL, 0) == 0)
    let (began, ended) = (Promise<pid_t>(), Promise<Int64>())
    try Thread.start("test-read") {
      let messages = UnsafeMutablePointer<uffd_msg>.allocate(capacity: 4)
      defer { messages.deallocate() }
      _ = vs_let_interrupt()
      began.fulfil(gettid())
      ended.fulfil(vs_uffd_read(descriptor, messages, 4 * MemoryLayout<uffd_msg>.stride))
    }
    let thread = began.wait()
    var result: Int64?
    // It may not have got there yet.
    while result == nil {
      #expect(vs_interrupt(thread) == 0)
      result = ended.wait(milliseconds: 10)
    }
    #expect(result == -Int64(EINTR))
  }
}
