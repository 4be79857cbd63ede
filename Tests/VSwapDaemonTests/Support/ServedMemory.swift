import CUserfault
import CVSwapWire
import Glibc

@testable import VSwapDaemon

/// Memory of this process that is served by a real userfaultfd, without events, and the daemon's state of it: the decisions
/// of `TargetState`, made on what the kernel says.
final class ServedMemory {
  let layer: SlotLayer
  let arena: ChunkArena
  let account = GroupAccount.create(limit: .none)
  /// Pages [first, first + count) of this process; what is registered of them says the test.
  let first: UInt64
  let count: Int
  var state: TargetState
  private let memory: UnsafeMutableRawPointer
  private let hole: UnsafeMutableRawPointer
  private var peer: Int32 = -1

  /// Whether this kernel lets the tests do it.
  static let isPossible: Bool = {
    guard let uffd = context() else { return false }
    close(uffd)
    return true
  }()

  private static func context() -> Int32? {
    let device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)
    guard device >= 0 else { return nil }
    defer { close(device) }
    let uffd = vs_uffd_new(device)
    guard uffd >= 0 else { return nil }
    var features: UInt64 = 0
    guard vs_uffd_api(uffd, 0, &features) == 0 else {
      close(uffd)
      return nil
    }
    return uffd
  }

  /// `hasAgent`: with a ring that nobody serves.
  init(pages count: Int, hasAgent: Bool = false, maximumChunks: Int = 64) throws {
    guard let uffd = Self.context() else { throw KernelError.last("userfaultfd") }
    layer = try SlotLayer.create(
      maximumSlots: 4096, cacheFrames: 256, poolReserveBytes: 1 << 20, poolLimitBytes: 1 << 20)
    arena = try ChunkArena.create(maximumChunks: maximumChunks)
    self.count = count
    memory = mmap(nil, count * pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    hole = mmap(nil, pageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    first = UInt64(UInt(bitPattern: memory)) / UInt64(pageSize)
    var attach = vswap_attach()
    attach.private_start.0 = UInt64(UInt(bitPattern: hole))
    attach.private_end.0 = attach.private_start.0 + UInt64(pageSize)
    var link: AgentLink?
    if hasAgent {
      var ends: [Int32] = [0, 0]
      guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0 else { throw KernelError.last("socketpair") }
      peer = ends[1]
      let ring = try Mapping.create(name: "test-ring", length: Int(vswap_ring_size()), sealed: true)
      link = AgentLink(socket: ends[0], program: vs_eventfd(), ring: ring, doorbell: vs_eventfd(), budget: layer.budget)
    }
    state = TargetState(
      id: 1, token: 1, uffd: Userfault(descriptor: uffd), account: account, counters: .create(), link: link,
      processID: getpid(), table: try .create(arena: arena), attach: attach)
  }

  deinit {
    let counters = state.counters
    state.destroy(layer: layer)
    counters.destroy()
    munmap(memory, count * pageSize)
    munmap(hole, pageSize)
    if peer >= 0 { close(peer) }
    account.destroy()
    arena.destroy()
    layer.destroy()
  }

  /// Registers pages of the memory, numbered from 0, with the kernel and in the books.
  func register(_ range: Range<Int>) throws {
    try state.uffd.register((first + UInt64(range.lowerBound)) * UInt64(pageSize), UInt64(range.count * pageSize))
    state.registered.insert(from: first + UInt64(range.lowerBound), below: first + UInt64(range.upperBound))
  }

  /// Makes the books have a page that has left.
  func putOut(_ index: Int) throws {
    let page = [UInt8](repeating: UInt8(truncatingIfNeeded: index + 1), count: pageSize)
    let slot = page.withUnsafeBytes { layer.store(page: $0.baseAddress!, target: 1, virtualPage: first + UInt64(index)) }
    guard let slot, state.table.set(first + UInt64(index), slot) else { throw KernelError(call: "store", code: ENOMEM) }
    account.swappedChanged(by: 1)
  }

  /// Which pages the books have as swapped out, numbered from 0.
  var out: [Int] {
    (0..<count).filter { PageTableEntry.isSlot(state.table.entry(first + UInt64($0))) }
  }
}
