/// Pages on their way from a swap area back into targets.
final class PageBatch: @unchecked Sendable {
  static let capacity = 64

  struct Item {
    var slot: SlotNumber
    /// What the slot's word was when its content was read.
    var word: SlotWord
    /// Where the page belongs, by the slot's owner word: a hint.
    var page: UInt64
    var isTaken = false
  }

  /// 64 pages; `items[n]` is at n * 4096.
  let content: UnsafeMutableRawPointer
  var items: [Item] = []
  var target: UInt32 = 0
  /// One page, for every process that has it.
  var isShared = false

  init() {
    content = .allocate(byteCount: Self.capacity * pageSize, alignment: pageSize)
    items.reserveCapacity(Self.capacity)
  }

  deinit { content.deallocate() }
}

/// Who has targets: swapoff brings pages back into them.
protocol PageSink: AnyObject, Sendable {
  /// Pages that the target's group can take now without evicting others.
  func room(target: UInt32) -> Int
  /// Pages that all groups together can take.
  func totalRoom() -> Int
  /// Brings the batch into its target and marks what was taken. Blocks until that is done, or for some seconds. false: whoever has the batch
  /// may still be at it, so it is the caller's no more, nor are its marks; what the caller does with its slots meanwhile is right all the same.
  func deliver(_ batch: PageBatch) -> Bool
  /// Brings the batch's one page to everybody who holds its slot at that place: processes that share it since a fork. The same otherwise.
  func deliverToAll(_ batch: PageBatch) -> Bool
  /// Makes everybody give their clean copies up. Blocks, for a second at most.
  func dropCopies()
  /// Makes everybody who does I/O look at the files again. Blocks, for a second at most.
  func filesChanged()
}
