import Glibc
import Synchronization

/// Descriptors that are held open so that one can be had at any time: they are given up for what must not fail, such as taking
/// over the child of a fork, and for nothing else. So whatever fills the table of descriptors leaves these alone.
///
/// A trivial handle; any thread may call. Make it before others open much: where the limit is lowered later, new descriptors
/// have to be numbers below it.
struct DescriptorReserve: @unchecked Sendable {
  private struct Fields: ~Copyable {
    let held = Atomic<Int>(0)
  }

  private let fields: UnsafeMutablePointer<Fields>
  private let descriptors: UnsafeMutablePointer<Int32>
  private let lock: Lock
  /// Descriptors when it is whole.
  let capacity: Int

  /// Holds as many of `most` as can be had.
  static func create(atMost most: Int) -> DescriptorReserve {
    let fields = UnsafeMutablePointer<Fields>.allocate(capacity: 1)
    fields.initialize(to: Fields())
    let descriptors = UnsafeMutablePointer<Int32>.allocate(capacity: max(1, most))
    var held = 0
    while held < most, let descriptor = spare() {
      descriptors[held] = descriptor
      held += 1
    }
    fields.pointee.held.store(held, ordering: .relaxed)
    return DescriptorReserve(fields: fields, descriptors: descriptors, lock: .create(), capacity: held)
  }

  private static func spare() -> Int32? {
    let descriptor = open("/dev/null", O_RDONLY | O_CLOEXEC)
    return descriptor >= 0 ? descriptor : nil
  }

  func destroy() {
    while giveUp(1) {}
    descriptors.deallocate()
    lock.destroy()
    fields.deinitialize(count: 1)
    fields.deallocate()
  }

  /// Nothing was given up that has not come back: there is no lack of descriptors.
  @inline(__always)
  var isWhole: Bool { fields.pointee.held.load(ordering: .relaxed) == capacity }

  /// Closes up to `count` of them. false: none is left.
  func giveUp(_ count: Int) -> Bool {
    lock.lock()
    defer { lock.unlock() }
    let before = fields.pointee.held.load(ordering: .relaxed)
    let after = max(0, before - count)
    for index in after..<before { close(descriptors[index]) }
    fields.pointee.held.store(after, ordering: .relaxed)
    return after < before
  }

  /// Takes back what was given up, as far as there is room by now. Cheap when it is whole.
  func refill() {
    guard !isWhole else { return }
    lock.lock()
    defer { lock.unlock() }
    var held = fields.pointee.held.load(ordering: .relaxed)
    while held < capacity, let descriptor = Self.spare() {
      descriptors[held] = descriptor
      held += 1
    }
    fields.pointee.held.store(held, ordering: .relaxed)
  }
}
