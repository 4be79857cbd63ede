import Synchronization

/// Pages that a read ahead of a stream has brought, which a worker (`Unpackers`) unpacks and maps while the pager serves faults.
///
/// A trivial handle. Belongs to one pager, which alone fills it and takes it back; in between it is the worker's. The read's buffer stays as it is
/// until the pager has taken the haul back. What the worker could not map stays where it is.
struct Haul: @unchecked Sendable {
  /// A page, the slot that its page table named, and where the content was when the read was started.
  struct Item {
    var page: UInt64
    var slot: SlotNumber
    var word: SlotWord
  }

  private struct Fields: ~Copyable {
    let state = Atomic<UInt8>(State.idle)
    var flight: AreaReader.Flight?
    var count = 0
  }

  private enum State {
    /// The pager's, with a read or without.
    static let idle: UInt8 = 0
    /// In a worker's queue.
    static let posted: UInt8 = 1
    /// The worker is at it.
    static let started: UInt8 = 2
    /// In the queue still, but the pager did not want to wait any longer.
    static let claimed: UInt8 = 3
    /// The worker is through, and about to say so.
    static let done: UInt8 = 4
  }

  /// Pages at most.
  static let capacity = 128
  /// Pages that are mapped in one call: the first ones should not wait for the last.
  private static let step = 16

  private let fields: UnsafeMutablePointer<Fields>
  private let items: UnsafeMutablePointer<Item>

  static func create() -> Haul {
    let haul = Haul(fields: .allocate(capacity: 1), items: .allocate(capacity: capacity))
    haul.fields.initialize(to: Fields())
    return haul
  }

  func destroy() {
    fields.deinitialize(count: 1)
    fields.deallocate()
    items.deallocate()
  }

  // MARK: - The pager

  /// It holds no read, and neither a worker nor a queue has it.
  var isFree: Bool { fields.pointee.flight == nil && fields.pointee.state.load(ordering: .acquiring) == State.idle }
  var count: Int { fields.pointee.count }

  /// Begins with no pages. Must be free.
  func begin() { fields.pointee.count = 0 }

  func add(_ item: Item) {
    items[fields.pointee.count] = item
    fields.pointee.count += 1
  }

  /// Is the read's from now on, which must be held, until that is taken back.
  func close(_ flight: AreaReader.Flight) { fields.pointee.flight = flight }

  /// Hands it to a worker. false: all of them have enough to do.
  func post(of pager: Unmanaged<Pager>, to workers: Unpackers) -> Bool {
    fields.pointee.state.store(State.posted, ordering: .releasing)
    if workers.post(.haul(self, pager), most: 2) { return true }
    fields.pointee.state.store(State.idle, ordering: .relaxed)
    return false
  }

  /// No worker has begun with it, and none will. It stays in its queue for a while.
  func claim() -> Bool {
    fields.pointee.state.compareExchange(
      expected: State.posted, desired: State.claimed, ordering: .acquiringAndReleasing
    ).exchanged
  }

  /// The read, which nobody needs any more. nil: a worker does.
  func takeBack() -> AreaReader.Flight? {
    let state = fields.pointee.state.load(ordering: .acquiring)
    guard state == State.idle || state == State.claimed || state == State.done else { return nil }
    let flight = fields.pointee.flight
    fields.pointee.flight = nil
    return flight
  }

  // MARK: - The worker

  /// A worker's turn. The pager may end as soon as the haul is idle.
  func workPosted(for pager: Pager, layer: SlotLayer, codec: Codec, batch: PageBatch) {
    let isMine = fields.pointee.state.compareExchange(
      expected: State.posted, desired: State.started, ordering: .acquiringAndReleasing
    ).exchanged
    if isMine && !work(for: pager, layer: layer, codec: codec, batch: batch) {
      fields.pointee.state.store(State.done, ordering: .releasing)
      // Threads may wait for pages that are not mapped.
      pager.nudge()
    }
    fields.pointee.state.store(State.idle, ordering: .releasing)
  }

  /// Unpacks and maps. On the worker's thread, or on the pager's own. false: not everything.
  @discardableResult
  func work(for pager: Pager, layer: SlotLayer, codec: Codec, batch: PageBatch) -> Bool {
    guard let flight = fields.pointee.flight else { return true }
    var isAll = true
    var next = 0
    while next < fields.pointee.count {
      let end = min(next + Self.step, fields.pointee.count)
      unpack(next..<end, flight, layer, codec, batch)
      if batch.items.count < end - next { isAll = false }
      guard pager.mapAheadHere(batch, of: flight.token) else { return false }
      next = end
    }
    return isAll
  }

  private func unpack(_ range: Range<Int>, _ flight: AreaReader.Flight, _ layer: SlotLayer, _ codec: Codec, _ batch: PageBatch) {
    batch.items.removeAll(keepingCapacity: true)
    for index in range {
      let item = items[index]
      // Who asks for a page whose object is damaged will be told.
      guard let content = layer.content(of: flight.object(item.word.place), item.slot, item.word),
        layer.unpack(content, into: batch.content + batch.items.count * pageSize, codec: codec)
      else { continue }
      batch.items.append(PageBatch.Item(slot: item.slot, word: item.word, page: item.page))
    }
  }
}
