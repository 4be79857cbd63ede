import Glibc
import Testing

@testable import VSwapDaemon

@Suite struct MappingTests {
  @Test func takesMemoryOnlyWhereItIsTouched() throws {
    let mapping = try Mapping.create(name: "test", length: 1 << 30)
    defer { mapping.destroy() }
    #expect(mapping.allocatedBytes() == 0)
    mapping.base.storeBytes(of: 7, toByteOffset: 5 * pageSize, as: UInt8.self)
    #expect(mapping.allocatedBytes() == pageSize)
    try mapping.discard(offset: 4 * pageSize, length: 2 * pageSize)
    #expect(mapping.allocatedBytes() == 0)
    #expect(mapping.base.load(fromByteOffset: 5 * pageSize, as: UInt8.self) == 0)
  }

  @Test func lengthIsRoundedUpToPages() throws {
    let mapping = try Mapping.create(name: "test", length: pageSize + 1)
    defer { mapping.destroy() }
    #expect(mapping.length == 2 * pageSize)
  }

  @Test func aSealedMappingKeepsItsSize() throws {
    let mapping = try Mapping.create(name: "test", length: pageSize, sealed: true)
    defer { mapping.destroy() }
    #expect(ftruncate(mapping.descriptor, 0) == -1 && errno == EPERM)
    #expect(ftruncate(mapping.descriptor, 2 * pageSize) == -1 && errno == EPERM)
  }

  @Test func errorsSayWhatTheKernelSaid() {
    let error = KernelError(call: "memfd_create", code: EMFILE)
    #expect(error.description == "memfd_create: Too many open files (EMFILE)")
    #expect(error == KernelError(call: "mmap", code: EMFILE))
    #expect(error != KernelError(call: "memfd_create", code: ENOMEM))
    #expect(KernelError(call: "mmap", code: 12345).description == "mmap: Unknown error 12345")
    #expect(throws: KernelError(call: "ftruncate", code: EINVAL)) {
      _ = try Mapping.create(name: String(repeating: "x", count: 300), length: 1)
    }
  }

  @Test func aHeldLockIsNotTaken() {
    let lock = Lock.create()
    lock.lock()
    onThreads(1) { _ in
      #expect(!lock.tryLock())
      #expect(!lock.lock(timeoutMilliseconds: 1))
    }
    lock.unlock()
    #expect(lock.tryLock())
    lock.unlock()
    #expect(lock.lock(timeoutMilliseconds: 1500))
    lock.unlock()
    lock.destroy()
  }
}
