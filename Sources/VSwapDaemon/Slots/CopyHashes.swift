import CXXHash
import Synchronization

/// Hashes of pages that came back while their slots were kept: 16 bytes per slot, in a sparse memfd.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. XXH3 with 128 bits and a seed that nobody knows: that a page
/// which has changed passes for the old one takes one chance in 2^128.
struct CopyHashes: @unchecked Sendable {
  private struct Record: ~Copyable {
    let low: Atomic<UInt64>
    let high: Atomic<UInt64>
  }

  private let mapping: Mapping
  private let seed: UInt64

  static func create(maximumSlots: Int) throws(KernelError) -> CopyHashes {
    let mapping = try Mapping.create(
      name: "vswapd-copy-hashes", length: (maximumSlots + 1) * MemoryLayout<Record>.stride)
    return CopyHashes(mapping: mapping, seed: .random(in: 1...UInt64.max))
  }

  func destroy() { mapping.destroy() }

  private func record(_ slot: SlotNumber) -> UnsafeMutablePointer<Record> {
    mapping.base.assumingMemoryBound(to: Record.self) + Int(slot)
  }

  /// Notes what the slot holds: 4096 private bytes. The caller holds a reference; processes that share the slot note the same.
  func note(_ slot: SlotNumber, _ page: UnsafeRawPointer) {
    let hash = vs_hash128(page, pageSize, seed)
    record(slot).pointee.low.store(hash.low, ordering: .relaxed)
    record(slot).pointee.high.store(hash.high, ordering: .relaxed)
  }

  /// Whether a page, 4096 bytes, is what was noted for the slot. By who has noted it, or has it from who did.
  func isSame(_ slot: SlotNumber, _ page: UnsafeRawPointer) -> Bool {
    let hash = vs_hash128(page, pageSize, seed)
    return record(slot).pointee.low.load(ordering: .relaxed) == hash.low
      && record(slot).pointee.high.load(ordering: .relaxed) == hash.high
  }

  /// RAM held, in bytes. One system call.
  var metadataBytes: Int { mapping.allocatedBytes() }
}
