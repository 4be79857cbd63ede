import CUserfault

/// Packs objects into segments and writes those, several at a time. For one thread at a time.
///
/// Pages that do not compress leave the pool before the others, so they are not collected in the same segments: what lies beside an object is then
/// what was evicted with it, and worth reading along.
///
/// A slot points into a segment only after its write has completed; until then the object is where it was. The writer holds a
/// reference of every slot that it has taken on.
final class SegmentWriter {
  private struct Item {
    var slot: SlotNumber
    var word: SlotWord
    var unit: Int
    var units: Int
  }

  /// A segment that is being filled or written.
  private struct Flight {
    var area: Int
    var builder: AreaSegment.Builder
    var items: [Item]
  }

  /// Nanoseconds for which nothing is written to an area that lacked room.
  private static let pauseWithoutRoom: UInt64 = 1_000_000_000

  private let layer: SlotLayer
  private let storage: any SegmentStorage
  private var idle: [Int]
  private let buffers: Int
  /// The segments that are being filled: of compressed objects, and of those that do not compress.
  private var open: [(buffer: Int, flight: Flight)?] = [nil, nil]
  private var flights: [Int: Flight] = [:]
  /// Objects that slots point to since the writer was made.
  private(set) var placed = 0
  /// Bytes of them in their areas.
  private(set) var placedBytes = 0
  /// Segments that could not be written.
  private(set) var failures = 0

  /// Uses `buffers` of the storage, and is the only one to do so.
  init(layer: SlotLayer, storage: any SegmentStorage, buffers: Range<Int>) {
    self.layer = layer
    self.storage = storage
    idle = Array(buffers)
    self.buffers = buffers.count
  }

  var isIdle: Bool { flights.isEmpty && open.allSatisfy { $0 == nil } }

  /// Takes over the caller's reference and copies the content. false: no area has room, and the reference stays the caller's.
  func append(
    _ slot: SlotNumber, from word: SlotWord, _ content: UnsafeRawPointer, length: Int, cleaning: Bool = false
  ) -> Bool {
    // Cleaning has counted on as few segments as there can be, and a single buffer cannot be two.
    let kind = length == pageSize && !cleaning && buffers > 1 ? 1 : 0
    return append(kind, slot, word, content, length, cleaning)
      || open[1 - kind] != nil && append(1 - kind, slot, word, content, length, cleaning)
  }

  private func append(
    _ kind: Int, _ slot: SlotNumber, _ word: SlotWord, _ content: UnsafeRawPointer, _ length: Int, _ cleaning: Bool
  ) -> Bool {
    for _ in 0..<2 {
      guard ensureOpen(kind, cleaning: cleaning) else { return false }
      if let unit = open[kind]!.flight.builder.append(content, length: length, slot: slot) {
        open[kind]!.flight.items.append(
          Item(slot: slot, word: word, unit: unit, units: AreaSegment.units(length: length)))
        return true
      }
      flush(kind)
    }
    return false
  }

  private func ensureOpen(_ kind: Int, cleaning: Bool) -> Bool {
    if open[kind] != nil { return true }
    if idle.isEmpty && flights.isEmpty { flush(1 - kind) }
    while idle.isEmpty { finishOne(wait: true) }
    guard let (area, segment) = layer.areas.takeSegment(cleaning: cleaning) else { return false }
    let buffer = idle.removeLast()
    let builder = AreaSegment.Builder(buffer: storage.buffer(buffer), stamp: layer.stamp(area, segment))
    open[kind] = (buffer, Flight(area: area, builder: builder, items: []))
    open[kind]!.flight.items.reserveCapacity(256)
    return true
  }

  /// Writes what has been collected, full or not.
  func flush() {
    for kind in open.indices { flush(kind) }
  }

  private func flush(_ kind: Int) {
    guard let (buffer, flight) = open[kind] else { return }
    open[kind] = nil
    flight.builder.finish()
    flights[buffer] = flight
    storage.write(area: flight.area, segment: flight.builder.stamp.segment, buffer: buffer)
  }

  /// Waits until everything is written; without `flushing`, but for the segment that is being filled.
  func drain(flushing: Bool = true) {
    if flushing { flush() }
    while !flights.isEmpty { finishOne(wait: true) }
  }

  /// Gives up the segments that are being filled: nobody waits for the room any more.
  func abandonOpen() {
    for kind in open.indices {
      guard let (buffer, flight) = open[kind] else { continue }
      open[kind] = nil
      idle.append(buffer)
      layer.areas.giveUp(flight.area, flight.builder.stamp.segment)
      giveBack(flight)
    }
  }

  func refresh() { storage.refresh() }

  /// Takes completed writes in, without waiting.
  func poll() {
    while finishOne(wait: false) {}
  }

  /// The storage is shared with reads of the same thread; those complete by themselves.
  @discardableResult
  private func finishOne(wait: Bool) -> Bool {
    guard let (buffer, outcome) = storage.completed(wait: wait), let flight = flights.removeValue(forKey: buffer)
    else { return false }
    idle.append(buffer)
    if case .complete = outcome { publish(flight) } else { takeBack(flight, outcome) }
    return true
  }

  private func publish(_ flight: Flight) {
    let segment = flight.builder.stamp.segment
    layer.areas.seal(flight.area, segment, objects: flight.items.count, units: flight.builder.units)
    let first = UInt64(segment) * UInt64(AreaPlace.unitsPerSegment)
    for item in flight.items {
      let place = AreaPlace(area: flight.area, unit: first + UInt64(item.unit), units: item.units)
      if layer.placeInArea(item.slot, from: item.word, place) {
        placed += 1
        placedBytes += place.bytes
      }
      layer.release(item.slot)
    }
  }

  /// The objects are where they were.
  private func takeBack(_ flight: Flight, _ outcome: SegmentOutcome) {
    failures += 1
    let segment = flight.builder.stamp.segment
    if case .noRoom = outcome {
      layer.areas.lackedRoom(flight.area, until: vs_monotonic_ns() + Self.pauseWithoutRoom)
    } else {
      layer.areas.writeFailed(flight.area, offset: Int(segment) * AreaPlace.segmentBytes)
    }
    layer.areas.giveUp(flight.area, segment)
    giveBack(flight)
  }

  private func giveBack(_ flight: Flight) {
    for item in flight.items {
      layer.putBack(item.slot)
      layer.release(item.slot)
    }
  }
}
