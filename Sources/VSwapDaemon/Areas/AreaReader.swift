import Glibc

/// Reads of single objects for a pager: many at once, so that no fault waits for the read of another. A trivial handle; one thread.
///
/// The ring and its buffers are made by the first fault on an area.
struct AreaReader: @unchecked Sendable {
  /// A read under way, for a page of a target.
  struct Flight {
    var index: Int
    var fault: Fault
    /// The address space that the fault is of.
    var token: UInt64
    var slot: SlotNumber
    var word: SlotWord
    /// Bytes from the start of the area that were asked for.
    var start: Int
    var length: Int
    /// It is to bring neighbours along.
    var isAround: Bool
    var buffer: UnsafeMutableRawPointer

    /// Whether all of an object is being read.
    @inline(__always)
    func holds(_ place: AreaPlace) -> Bool {
      word.place.area == place.area && place.offset >= start && place.offset + place.bytes <= start + length
    }

    /// Where an object is that has been read.
    @inline(__always)
    func object(_ place: AreaPlace) -> UnsafeRawPointer { UnsafeRawPointer(buffer + (place.offset - start)) }
  }

  /// Reads at a time. More faults wait their turn.
  static let capacity = 32
  /// Of those, reads ahead of streams. A disk may tell of a whole queue at once when the last read has completed, so a longer one keeps
  /// everybody waiting, and a fault's own read comes last.
  private static let mostAhead = 8
  /// Bytes that one read brings at most, neighbours included.
  static let longest = 64 << 10

  private struct Fields {
    var ring: Uring?
    var memory: UnsafeMutableRawPointer?
    var seen: UInt64 = 0
    var idleCount = 0
    var underWay = 0
    /// Reads ahead that the disk has not completed.
    var aheadUnderWay = 0
    /// Reads that somebody asked for, likewise.
    var askedUnderWay = 0
    var isUnusable = false
  }

  private let files: AreaFiles
  private let fields: UnsafeMutablePointer<Fields>
  private let flights: UnsafeMutablePointer<Flight>
  private let idle: UnsafeMutablePointer<UInt8>

  static func create(files: AreaFiles) -> AreaReader {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    return AreaReader(
      files: files, fields: fields, flights: .allocate(capacity: capacity), idle: .allocate(capacity: capacity))
  }

  func destroy() {
    if let ring = fields.pointee.ring {
      while fields.pointee.underWay > 0 {
        ring.submit(waitingFor: 1)
        while ring.completed() != nil { fields.pointee.underWay -= 1 }
      }
      ring.destroy()
    }
    if let memory = fields.pointee.memory { munmap(memory, Self.capacity * Self.longest) }
    fields.deinitialize(count: 1)
    fields.deallocate()
    flights.deallocate()
    idle.deallocate()
  }

  /// Readable when a read has completed; -1 as long as there was none.
  var descriptor: Int32 { fields.pointee.ring?.descriptor ?? -1 }
  /// Reads that have not been taken in.
  var underWay: Int { fields.pointee.underWay }
  /// Reads under way that somebody asked for.
  var askedUnderWay: Int { fields.pointee.askedUnderWay }
  /// The kernel was short of memory when a read was started: `next` tries again, and has to be called soon.
  var hasQueued: Bool { fields.pointee.ring.map { $0.hasQueued } ?? false }

  /// What `start` did.
  enum Started {
    case underWay
    /// All buffers are in use: again when a read has completed.
    case busy
    /// No ring could be made: `readNow` has to do.
    case impossible
  }

  /// Whether a read for this page of the address space is under way, whose end is the end of everybody's wait for it.
  func isReading(_ token: UInt64, _ address: UInt64) -> Bool {
    guard fields.pointee.underWay > 0 else { return false }
    for index in 0..<Self.capacity
    where flights[index].token == token && flights[index].fault.address == address && flights[index].fault.thread != Fault.ahead {
      return true
    }
    return false
  }

  /// Whether a read under way for the address space will bring the object along. Whoever waits for that has to look again when the read is over.
  func isBringing(_ token: UInt64, _ word: SlotWord) -> Bool {
    guard fields.pointee.underWay > 0 else { return false }
    for index in 0..<Self.capacity where flights[index].token == token {
      if flights[index].isAround {
        if flights[index].holds(word.place) { return true }
      } else if flights[index].fault.thread == Fault.ahead && flights[index].word == word {
        return true
      }
    }
    return false
  }

  /// Reads the object where `word` says, and `longest` bytes with what was evicted after it if `around` is set.
  func start(_ fault: Fault, token: UInt64, slot: SlotNumber, word: SlotWord, around: Bool) -> Started {
    guard prepare() else { return .impossible }
    let isAhead = fault.thread == Fault.ahead
    guard fields.pointee.idleCount > 0, let ring = fields.pointee.ring,
      !isAhead || fields.pointee.aheadUnderWay < Self.mostAhead
    else { return .busy }
    let index = Int(idle[fields.pointee.idleCount - 1])
    let place = word.place
    let end = (place.offset + place.bytes + pageSize - 1) & ~(pageSize - 1)
    var begin = place.offset & ~(pageSize - 1)
    // Segments are filled from the end: what came later lies below.
    if around { begin = max(Int(place.segment) * AreaPlace.segmentBytes, end - Self.longest) }
    let buffer = fields.pointee.memory! + index * Self.longest
    guard ring.queue(write: false, file: place.area, buffer: buffer, length: end - begin, offset: begin, token: UInt64(index))
    else { return .busy }
    flights[index] = Flight(
      index: index, fault: fault, token: token, slot: slot, word: word, start: begin, length: end - begin, isAround: around,
      buffer: buffer)
    fields.pointee.idleCount -= 1
    fields.pointee.underWay += 1
    if isAhead { fields.pointee.aheadUnderWay += 1 } else { fields.pointee.askedUnderWay += 1 }
    ring.submit()
    return .underWay
  }

  /// Reads the object where `word` says, into a page-aligned buffer of two pages at least, and waits for it. Returns the object, or nil.
  func readNow(_ word: SlotWord, into buffer: UnsafeMutableRawPointer) -> UnsafeRawPointer? {
    let place = word.place
    let begin = place.offset & ~(pageSize - 1)
    let end = (place.offset + place.bytes + pageSize - 1) & ~(pageSize - 1)
    guard pread(files.descriptor(place.area), buffer, end - begin, begin) == end - begin else { return nil }
    return UnsafeRawPointer(buffer + (place.offset - begin))
  }

  /// The faults whose reads are under way for an address space that leaves. What they bring is dropped.
  func abandon(_ token: UInt64, _ body: (Fault) -> Void) {
    guard fields.pointee.underWay > 0 else { return }
    for index in 0..<Self.capacity where flights[index].token == token {
      if flights[index].fault.thread != Fault.ahead { body(flights[index].fault) }
      flights[index].token = 0
    }
  }

  /// A completed read, and whether it brought all that was asked for. Its buffer stays until `finish`; the page may be read anew at once,
  /// since its slot may lie somewhere else by now.
  func next() -> (flight: Flight, isComplete: Bool)? {
    guard fields.pointee.underWay > 0, let ring = fields.pointee.ring else { return nil }
    guard let (token, result) = ring.completed() else {
      ring.submit()
      return nil
    }
    let index = Int(token)
    let flight = flights[index]
    flights[index].token = 0
    if flight.fault.thread == Fault.ahead { fields.pointee.aheadUnderWay -= 1 } else { fields.pointee.askedUnderWay -= 1 }
    return (flight, result == flight.length)
  }

  /// What the completed read has brought is on its way to the address space: `isBringing` holds until `finish`.
  func hold(_ flight: Flight) { flights[flight.index].token = flight.token }

  func finish(_ index: Int) {
    flights[index].token = 0
    idle[fields.pointee.idleCount] = UInt8(index)
    fields.pointee.idleCount += 1
    fields.pointee.underWay -= 1
  }

  /// Areas came or went.
  func refreshFiles() {
    if let ring = fields.pointee.ring { try? files.register(in: ring, seen: &fields.pointee.seen) }
  }

  @inline(__always)
  private func prepare() -> Bool {
    if fields.pointee.ring != nil && fields.pointee.seen == files.generation { return true }
    return prepareSlowly()
  }

  @inline(never)
  private func prepareSlowly() -> Bool {
    if fields.pointee.isUnusable { return false }
    if fields.pointee.ring == nil { fields.pointee.isUnusable = !open() }
    guard let ring = fields.pointee.ring else { return false }
    return (try? files.register(in: ring, seen: &fields.pointee.seen)) != nil
  }

  private func open() -> Bool {
    let length = Self.capacity * Self.longest
    guard let memory = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), memory != MAP_FAILED
    else { return false }
    guard let ring = try? Uring.create(entries: Self.capacity, files: AreaPlace.maximumAreas, buffer: memory, length: length)
    else {
      munmap(memory, length)
      return false
    }
    fields.pointee.memory = memory
    fields.pointee.ring = ring
    for index in 0..<Self.capacity {
      idle[index] = UInt8(index)
      flights[index].token = 0
    }
    fields.pointee.idleCount = Self.capacity
    return true
  }
}
