import CUserfault
import Glibc

/// What a pager needs while it serves faults, allocated once: nothing on the fault path allocates. A trivial handle, used by
/// its pager's thread alone.
struct FaultBuffers {
  let layer: SlotLayer
  /// Made before the first eviction: many targets never need it.
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
    // Memory of its own, which goes back to the system with the target; only what is used takes RAM.
    let bounce = try memory(bounceBytes, PROT_READ | PROT_WRITE)
    do throws(KernelError) {
      let zeros = try memory(batchPages * pageSize, PROT_READ)
      do throws(KernelError) {
        return FaultBuffers(
          layer, try ReadAhead(layer: layer, workers: unpackers), .create(files: files), unpackers, bounce, zeros)
      } catch {
        munmap(zeros, batchPages * pageSize)
        throw error
      }
    } catch {
      munmap(bounce, bounceBytes)
      throw error
    }
  }

  private static func memory(_ bytes: Int, _ protection: Int32) throws(KernelError) -> UnsafeMutableRawPointer {
    guard let memory = mmap(nil, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), memory != MAP_FAILED
    else { throw .last("mmap") }
    return memory
  }

  /// Pages to copy from, and the faults behind them.
  private static let bounceBytes = batchPages * pageSize + faultCapacity * MemoryLayout<Fault>.stride

  /// Takes over all that can be had or not.
  private init(
    _ layer: SlotLayer, _ ahead: ReadAhead, _ reader: AreaReader, _ unpackers: Unpackers,
    _ bounce: UnsafeMutableRawPointer, _ zeros: UnsafeMutableRawPointer
  ) {
    self.layer = layer
    self.reader = reader
    self.unpackers = unpackers
    self.bounce = bounce
    self.zeros = UnsafeRawPointer(zeros)
    self.ahead = .allocate(capacity: 1)
    self.ahead.initialize(to: ahead)
    hauls = .allocate(capacity: Self.haulCount)
    for index in 0..<Self.haulCount { (hauls + index).initialize(to: .create()) }
    unpacker = .allocate(capacity: 1)
    unpacker.initialize(to: nil)
    messages = .allocate(capacity: Self.messageCapacity)
    faults = (bounce + Self.batchPages * pageSize).bindMemory(to: Fault.self, capacity: Self.faultCapacity)
  }

  /// Before a page may leave that has to be unpacked some day. false: there is no memory for that.
  func prepareToUnpack() -> Bool {
    if unpacker.pointee == nil { unpacker.pointee = try? Codec.createForUnpacking() }
    return unpacker.pointee != nil
  }

  /// Whoever has slots has one.
  @inline(__always)
  var codec: Codec { unpacker.pointee! }

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
    munmap(bounce, Self.bounceBytes)
    munmap(UnsafeMutableRawPointer(mutating: zeros), Self.batchPages * pageSize)
    unpacker.pointee?.destroy()
    unpacker.deallocate()
    messages.deallocate()
  }
}
