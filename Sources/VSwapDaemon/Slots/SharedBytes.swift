import Synchronization

/// Copies to and from memory that others may reuse at the same time: frames and pool objects.
///
/// A load copies first and asks afterwards whether what it copied was still the page: a sequence lock, whose
/// sequence number is the slot's word. Its reads may thus race with the writes of the memory's next user. By
/// the letter of the memory model both must be relaxed atomics (Boehm, "Can Seqlocks Get Along With
/// Programming Language Memory Models?", MSPC 2012). Debug builds do it that way, so that the thread
/// sanitizer can check all the rest. But 8 bytes at a time cost 0.2-0.4 us per page more than memcpy, a third
/// of a store; release builds rely, as the kernel's seqlocks do, on the fences ordering plain accesses just
/// as well: the compiler moves no call to memcpy across them, and on x86-64 and AArch64 they order what it
/// does.
enum SharedBytes {
  /// Copies `count` bytes of shared memory into private memory, both 8-byte aligned.
  ///
  /// What was copied means nothing until `SlotTable.isStill` (an acquiring fence, and a look at the word)
  /// says that it still was the slot's.
  static func copyOut(from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int) {
    copy(from: source, to: destination, count: count)
  }

  /// Copies `count` bytes, of private memory or of an object that stays, into shared memory that the caller
  /// has just allocated, both 8-byte aligned.
  ///
  /// The releasing fence pairs with the acquiring one of a reader that is still at the former content: if it
  /// saw any byte written here, it also sees that the former slot's word has changed.
  static func copyIn(from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int) {
    atomicMemoryFence(ordering: .releasing)
    copy(from: source, to: destination, count: count)
  }

  @inline(__always)
  private static func copy(
    from source: UnsafeRawPointer, to destination: UnsafeMutableRawPointer, count: Int
  ) {
    #if DEBUG
      let words = (
        source.assumingMemoryBound(to: Atomic<UInt64>.self),
        destination.assumingMemoryBound(to: Atomic<UInt64>.self)
      )
      for index in 0..<count / 8 {
        words.1[index].store(words.0[index].load(ordering: .relaxed), ordering: .relaxed)
      }
      let bytes = (
        source.assumingMemoryBound(to: Atomic<UInt8>.self),
        destination.assumingMemoryBound(to: Atomic<UInt8>.self)
      )
      for index in count & ~7..<count {
        bytes.1[index].store(bytes.0[index].load(ordering: .relaxed), ordering: .relaxed)
      }
    #else
      destination.copyMemory(from: source, byteCount: count)
    #endif
  }

  /// Whether a page (4096 bytes) is all zero. Stops at the first 64 bytes that are not.
  static func isZero(page: UnsafeRawPointer) -> Bool {
    var offset = 0
    while offset < pageSize {
      let bytes = page.loadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
      if bytes != SIMD8<UInt64>.zero { return false }
      offset += MemoryLayout<SIMD8<UInt64>>.size
    }
    return true
  }
}
