import CUserfault
import Glibc

/// What a pager needs while it serves faults, allocated once: nothing on the fault path allocates. A trivial handle, used by
/// its pager's thread alone.
struct FaultBuffers {
  let layer: SlotLayer
  /// Made by the first page that has to be unpacked: most targets never need it.
  private let unpacker: UnsafeMutablePointer<Codec?>
  /// Reads from swap areas.
  let reader: AreaReader
  /// What was unpacked ahead of a stream of faults.
  let ahead: UnsafeMutablePointer<ReadAhead>
  let unpackers: Unpackers
  /// `haulCount` of them.
  let hauls: UnsafeMutablePointer<Haul>
  /// The pager that owns the buffers: forks are its business.
  var pager: Unmanaged<Pager>?
  /// Room for `batchPages` pages.
  let bounce: UnsafeMutableRawPointer
  /// As many pages of zeros: one page of RAM, mapped from nothing.
  let zeros: UnsafeRawPointer
  let messages: UnsafeMutablePointer<uffd_msg>
  let faults: UnsafeMutablePointer<Fault>

  static let batchPages = 64
  /// Reads ahead of streams that are being unpacked at a time, at most.
  static let haulCount = 8
  static let messageCapacity = 64
  /// More threads than this that fault at once in one target are woken to fault again.
  static let faultCapacity = 4096

  static func create(layer: SlotLayer, files: AreaFiles, unpackers: Unpackers) throws(KernelError) -> FaultBuffers {
    let bytes = batchPages * pageSize
    let flags = MAP_PRIVATE | MAP_ANONYMOUS
    // Memory of its own, which goes back to the system with the target; only what is used takes RAM.
    guard let bounce = mmap(nil, bytes + Self.faultBytes, PROT_READ | PROT_WRITE, flags, -1, 0), bounce != MAP_FAILED,
      let zeros = mmap(nil, bytes, PROT_READ, flags, -1, 0), zeros != MAP_FAILED
    else { throw .last("mmap") }
    let ahead = UnsafeMutablePointer<ReadAhead>.allocate(capacity: 1)
    ahead.initialize(to: try ReadAhead(layer: layer, workers: unpackers))
    let hauls = UnsafeMutablePointer<Haul>.allocate(capacity: haulCount)
    for index in 0..<haulCount { (hauls + index).initialize(to: .create()) }
    let unpacker = UnsafeMutablePointer<Codec?>.allocate(capacity: 1)
    unpacker.initialize(to: nil)
    return FaultBuffers(
      layer: layer, unpacker: unpacker, reader: .create(files: files), ahead: ahead,
      unpackers: unpackers, hauls: hauls, bounce: bounce,
      zeros: UnsafeRawPointer(zeros), messages: .allocate(capacity: messageCapacity),
      faults: (bounce + bytes).bindMemory(to: Fault.self, capacity: faultCapacity))
  }

  private static let faultBytes = faultCapacity * MemoryLayout<Fault>.stride

  @inline(__always)
  var codec: Codec {
    if let made = unpacker.pointee { return made }
    return makeCodec()
  }

  @inline(never)
  private func makeCodec() -> Codec {
    let codec = Codec.createForUnpacking()
    unpacker.pointee = codec
    return codec
  }

  /// Takes back what the workers are through with. false: they still have some.
  @discardableResult
  func takeBackHauls() -> Bool {
    var isAll = true
    for index in 0..<Self.haulCount {
      if let flight = hauls[index].takeBack() { reader.finish(flight.index) }
      if !hauls[index].isFree { isAll = false }
    }
    return isAll
  }

  /// No worker may have a haul.
  func destroy() {
    for index in 0..<Self.haulCount { hauls[index].destroy() }
    hauls.deallocate()
    reader.destroy()
    ahead.pointee.destroy()
    ahead.deallocate()
    munmap(bounce, Self.batchPages * pageSize + Self.faultBytes)
    munmap(UnsafeMutableRawPointer(mutating: zeros), Self.batchPages * pageSize)
    unpacker.pointee?.destroy()
    unpacker.deallocate()
    messages.deallocate()
  }
}
