import CUserfault
import Glibc

/// What a pager needs while it serves faults, allocated once: nothing on the fault path allocates. A trivial handle, used by
/// its pager's thread alone.
struct FaultBuffers {
  let layer: SlotLayer
  let codec: Codec
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
    let codec = try Codec.create()
    do throws(KernelError) {
      let bounce = try memory(PROT_READ | PROT_WRITE)
      do throws(KernelError) {
        let zeros = try memory(PROT_READ)
        do throws(KernelError) {
          let ahead = try ReadAhead(layer: layer, workers: unpackers)
          return FaultBuffers(layer, codec, ahead, .create(files: files), unpackers, bounce, zeros)
        } catch {
          munmap(zeros, batchPages * pageSize)
          throw error
        }
      } catch {
        munmap(bounce, batchPages * pageSize)
        throw error
      }
    } catch {
      codec.destroy()
      throw error
    }
  }

  private static func memory(_ protection: Int32) throws(KernelError) -> UnsafeMutableRawPointer {
    guard let memory = mmap(nil, batchPages * pageSize, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), memory != MAP_FAILED
    else { throw .last("mmap") }
    return memory
  }

  /// Takes over all that can be had or not.
  private init(
    _ layer: SlotLayer, _ codec: Codec, _ ahead: ReadAhead, _ reader: AreaReader, _ unpackers: Unpackers,
    _ bounce: UnsafeMutableRawPointer, _ zeros: UnsafeMutableRawPointer
  ) {
    self.layer = layer
    self.codec = codec
    self.reader = reader
    self.unpackers = unpackers
    self.bounce = bounce
    self.zeros = UnsafeRawPointer(zeros)
    self.ahead = .allocate(capacity: 1)
    self.ahead.initialize(to: ahead)
    hauls = .allocate(capacity: Self.haulCount)
    for index in 0..<Self.haulCount { (hauls + index).initialize(to: .create()) }
    messages = .allocate(capacity: Self.messageCapacity)
    faults = .allocate(capacity: Self.faultCapacity)
    faults.initialize(repeating: Fault(address: 0, thread: 0, write: false), count: Self.faultCapacity)
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
    munmap(bounce, Self.batchPages * pageSize)
    munmap(UnsafeMutableRawPointer(mutating: zeros), Self.batchPages * pageSize)
    codec.destroy()
    messages.deallocate()
    faults.deallocate()
  }
}
