import Glibc
import Synchronization

/// The open files of the swap areas, by area number, for those who do I/O. A trivial handle; any thread may call.
///
/// Each ring has them registered in a table of its own and brings it up to date when `generation` has changed.
struct AreaFiles: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let generation = Atomic<UInt64>(0)
  }

  private let fields: UnsafeMutablePointer<Fields>
  private let descriptors: UnsafeMutablePointer<Int32>
  /// Whether free segments are given back to the file system or the device.
  private let discarding: UnsafeMutablePointer<Bool>
  private let lock: Lock

  static func create() -> AreaFiles {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    let descriptors = UnsafeMutablePointer<Int32>.allocate(capacity: AreaPlace.maximumAreas)
    descriptors.initialize(repeating: -1, count: AreaPlace.maximumAreas)
    let discarding = UnsafeMutablePointer<Bool>.allocate(capacity: AreaPlace.maximumAreas)
    discarding.initialize(repeating: false, count: AreaPlace.maximumAreas)
    return AreaFiles(fields: fields, descriptors: descriptors, discarding: discarding, lock: .create())
  }

  var generation: UInt64 { fields.pointee.generation.load(ordering: .acquiring) }

  /// -1: the area has gone. Who closes the descriptor does so afterwards.
  func set(_ area: Int, _ descriptor: Int32, discards: Bool = false) {
    lock.lock()
    descriptors[area] = descriptor
    discarding[area] = discards
    fields.pointee.generation.add(1, ordering: .releasing)
    lock.unlock()
  }

  func descriptor(_ area: Int) -> Int32 {
    lock.lock()
    defer { lock.unlock() }
    return descriptors[area]
  }

  func discards(_ area: Int) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    return discarding[area]
  }

  /// Registers what has changed since `seen`. Under the lock, so that no descriptor is closed in between.
  func register(in ring: Uring, seen: inout UInt64) throws(KernelError) {
    lock.lock()
    defer { lock.unlock() }
    let now = generation
    guard now != seen else { return }
    for area in 0..<AreaPlace.maximumAreas { try ring.setFile(area, descriptors[area]) }
    seen = now
  }
}
