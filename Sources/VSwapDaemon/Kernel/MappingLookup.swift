import CUserfault
import Glibc

/// Looks up single mappings of an address space by an open /proc/PID/maps, which stays with that address space whatever the process
/// executes. A trivial handle: whoever opened the descriptor closes it. Any thread may call.
struct MappingLookup: Sendable {
  /// /proc/PID/maps, or -1.
  let descriptor: Int32

  enum Answer {
    case mapping(MappedRegion)
    /// Nothing is mapped there.
    case none
    /// The kernel does not know the call (before Linux 6.11), or the address space has gone.
    case unknown
  }

  /// The mapping that holds the page. Without flags.
  func covering(_ page: UInt64) -> Answer { ask(page, orNext: false) }

  /// The mapping that holds the page, or the first one after it.
  func from(_ page: UInt64) -> Answer { ask(page, orNext: true) }

  /// Whether the kernel answers at all.
  var works: Bool {
    if case .unknown = from(0) { return false }
    return true
  }

  private func ask(_ page: UInt64, orNext: Bool) -> Answer {
    guard descriptor >= 0, page < UInt64.max / UInt64(pageSize) else { return .unknown }
    var found = vs_mapping()
    switch vs_mapping_at(descriptor, page * UInt64(pageSize), orNext ? 1 : 0, &found) {
    case 0: return .mapping(MappedRegion(found))
    case -ENOENT: return .none
    default: return .unknown
    }
  }
}

extension MappedRegion {
  fileprivate init(_ mapping: vs_mapping) {
    start = mapping.start / UInt64(pageSize)
    end = mapping.end / UInt64(pageSize)
    readable = mapping.readable != 0
    writable = mapping.writable != 0
    growsDown = mapping.is_stack != 0
    anonymous = mapping.shared == 0 && mapping.inode == 0 && (mapping.is_named == 0 || mapping.is_heap != 0)
  }
}
