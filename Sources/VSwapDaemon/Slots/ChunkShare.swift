import Synchronization

/// Counts the chunks that the page tables of one group have. A trivial handle; any thread may call.
struct ChunkShare: @unchecked Sendable {
  private let count: UnsafeMutablePointer<Atomic<Int>>

  static func create() -> ChunkShare {
    let count = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 1)
    count.initialize(to: Atomic(0))
    return ChunkShare(count: count)
  }

  func destroy() {
    count.deinitialize(count: 1)
    count.deallocate()
  }

  var chunks: Int { count.pointee.load(ordering: .relaxed) }

  func add(_ change: Int) { count.pointee.wrappingAdd(change, ordering: .relaxed) }
}
