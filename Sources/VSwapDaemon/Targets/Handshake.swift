import CUserfault
import CVSwapWire
import Glibc

/// The daemon's side of attaching: from an accepted connection to a pager that serves the target.
///
/// Runs on the thread that becomes the pager's, so a slow or hostile peer keeps nobody else waiting; the socket's time limit ends it.
struct Handshake {
  /// Why a process is not served; the text goes to its shim.
  struct Refusal: Error {
    let text: String
  }

  let registry: TargetRegistry
  let layer: SlotLayer
  let chunks: ChunkArena
  let budget: FrameBudget
  let compressor: Compressor
  let unpackers: Unpackers
  let haltPolling: HaltPolling
  let files: AreaFiles
  /// /dev/userfaultfd, opened by the daemon: it works for any user of the target.
  let device: Int32

  /// Serves the connection to its end.
  func run(_ connection: Int32) {
    do {
      let pager = try attach(connection)
      pager.run()
    } catch let refusal as Refusal {
      refuse(connection, refusal.text)
    } catch {
      refuse(connection, "\(error)")
    }
  }

  private func refuse(_ connection: Int32, _ text: String) {
    var welcome = vswap_welcome()
    welcome.magic = VSWAP_MAGIC
    welcome.status = UInt32(VSWAP_REFUSED.rawValue)
    Wire.set(&welcome.text, to: text)
    _ = vs_send(connection, &welcome, MemoryLayout<vswap_welcome>.size, nil, 0)
    close(connection)
  }

  private func attach(_ connection: Int32) throws -> Pager {
    var peer = vs_peer()
    let status = vs_peer_of(connection, &peer)
    guard status == 0 else { throw KernelError(call: "getsockopt", code: -status) }
    var passed: Int32 = -1
    let hello = try receive(connection, vswap_hello(), &passed)
    do {
      guard hello.magic == VSWAP_MAGIC, hello.version == VSWAP_VERSION else {
        throw Refusal(text: "the preload library is of another version than the daemon; install both together")
      }
      let program = try program(ofAgent: peer.pid, passed)
      switch hello.kind {
      case UInt32(VSWAP_NEW.rawValue): return try attachNew(connection, hello, program)
      case UInt32(VSWAP_CHILD.rawValue): return try attachChild(connection, hello, program)
      default: throw Refusal(text: "the preload library asked for something unknown")
      }
    } catch {
      if passed >= 0 { close(passed) }
      throw error
    }
  }

  /// Who is to be served. The agent is whoever connected, as the kernel says; the program is what it has a pidfd of, if it shares the
  /// program's memory.
  private func program(ofAgent agent: Int32, _ pidfd: Int32) throws -> Program {
    let processID = pidfd < 0 ? -EBADF : vs_process_of(pidfd)
    guard processID > 0, vs_shares_memory(agent, processID) == 1 else {
      throw Refusal(text: "the agent does not share the memory of the program that it speaks for")
    }
    return Program(processID: processID, pidfd: pidfd, agent: agent)
  }

  // MARK: - A new program

  private func attachNew(_ connection: Int32, _ hello: vswap_hello, _ program: Program) throws -> Pager {
    compressor.prepare()
    let endpoint = try Endpoint(program: program, connection: connection, layer: layer, files: files, unpackers: unpackers)
    var passed: Int32 = -1
    do {
      try welcome(connection, endpoint)
      let attach = try receive(connection, vswap_attach(), &passed)
      guard passed >= 0, vs_is_userfaultfd(passed) != 0 else {
        throw Refusal(text: "no userfaultfd came with the attach message")
      }
      let state = try stateOfNew(hello, endpoint, attach, Userfault(descriptor: passed))
      return start(connection, state, hello: hello, endpoint: endpoint, isForked: false)
    } catch {
      if passed >= 0 { close(passed) }
      endpoint.discard()
      throw error
    }
  }

  private func stateOfNew(
    _ hello: vswap_hello, _ endpoint: Endpoint, _ attach: vswap_attach, _ uffd: Userfault
  ) throws -> (member: Pager.Member, group: Group) {
    try uffd.negotiate()
    try uffd.register(attach.staging_address, UInt64(VSWAP_BANK_PAGES) * UInt64(pageSize))
    try uffd.register(attach.identity_address, UInt64(pageSize))
    try prove(uffd, endpoint, attach.identity_address)
    let table = try PageTable.create(arena: chunks)
    let given = Wire.text(hello.group)
    let name = given.isEmpty ? "\(Wire.text(hello.name))-\(endpoint.program.processID)" : given
    guard let (group, id, token) = registry.enter(groupNamed: name, limit: Self.limit(hello.limit_bytes)) else {
      var table = table
      table.destroy(layer: layer)
      throw Refusal(text: "the daemon serves \(TargetRegistry.maximumTargets) address spaces already")
    }
    let member = Pager.Member.allocate(capacity: 1)
    member.initialize(
      to: TargetState(
        id: id, token: token, uffd: uffd, account: group.account, counters: .create(), link: nil,
        processID: endpoint.program.agent, table: table, attach: attach))
    return (member, group)
  }

  /// That the userfaultfd is one of the address space which /proc shows for the agent: what is put in through the one is seen by the other.
  /// The files of /proc stay with the address space that they were opened for, so the last one opened proves those before.
  private func prove(_ uffd: Userfault, _ endpoint: Endpoint, _ address: UInt64) throws {
    let secret = UInt64.random(in: 1...UInt64.max)
    let filled = withUnsafeTemporaryAllocation(of: UInt64.self, capacity: pageSize / 8) { page in
      page.initialize(repeating: secret)
      return vs_uffd_copy(uffd.descriptor, address, page.baseAddress!, UInt64(pageSize))
    }
    guard filled == Int64(pageSize), endpoint.shows(secret, at: address) else {
      throw Refusal(text: "the userfaultfd is none of the process that passed it")
    }
  }

  private static func limit(_ bytes: UInt64) -> GroupLimit {
    switch bytes {
    case 0: .none
    case VSWAP_LIMIT_AUTO: .auto
    default: .fixed(pages: max(1, Int(clamping: bytes) / pageSize))
    }
  }

  // MARK: - A child that grew up

  private func attachChild(_ connection: Int32, _ hello: vswap_hello, _ program: Program) throws -> Pager {
    guard let old = registry.pager(ofChild: hello.token) else {
      throw Refusal(text: "the daemon knows no such child")
    }
    let endpoint = try Endpoint(program: program, connection: connection, layer: layer, files: files, unpackers: unpackers)
    do {
      try welcome(connection, endpoint)
      try passInherited(connection, old, hello.token)
      var none: Int32 = -1
      let attach = try receive(connection, vswap_attach(), &none)
      if none >= 0 { close(none) }
      // The agent has read there who it is.
      guard endpoint.shows(hello.token, at: attach.identity_address) else {
        throw Refusal(text: "the token is none of the process that sent it")
      }
      let promise = Promise<Pager.HandOver?>()
      // Without a limit: a child that was handed over to somebody who gave up would never be served again.
      guard old.post(.handOver(token: hello.token, promise)), let handOver = promise.wait()
      else { throw Refusal(text: "the child is not served any more") }
      // From here on this thread serves the child, and nothing below fails. Without a registered staging area the agent moves nothing.
      let staging = UInt64(VSWAP_BANK_PAGES) * UInt64(pageSize)
      try? handOver.member.pointee.uffd.register(attach.staging_address, staging)
      handOver.member.pointee.privateRanges = PrivateRanges(attach)
      return start(
        connection, (handOver.member, old.target.group), hello: hello, endpoint: endpoint, isForked: true)
    } catch {
      endpoint.discard()
      throw error
    }
  }

  private func passInherited(_ connection: Int32, _ old: Pager, _ token: UInt64) throws {
    let promise = Promise<Int32?>()
    guard old.post(.duplicate(token: token, promise)), let inherited = promise.wait(),
      inherited >= 0
    else { throw Refusal(text: "the child is not served any more") }
    defer { close(inherited) }
    try send(connection, [inherited])
  }

  // MARK: - Both

  /// Makes the target known, tells its shim, and returns the pager to run.
  private func start(
    _ connection: Int32, _ state: (member: Pager.Member, group: Group), hello: vswap_hello, endpoint: Endpoint,
    isForked: Bool
  ) -> Pager {
    let member = state.member
    let target = Target(
      id: member.pointee.id, processID: endpoint.program.processID, name: Wire.text(hello.name), group: state.group,
      counters: member.pointee.counters, family: endpoint.family, statm: endpoint.statm, isForked: isForked)
    member.pointee.processID = endpoint.program.agent
    member.pointee.pagemap = endpoint.pagemap
    member.pointee.link = AgentLink(
      socket: connection, program: endpoint.program.pidfd, ring: endpoint.ring, doorbell: endpoint.doorbell)
    let pager = Pager(
      target: target, state: member, family: registry, mailbox: endpoint.mailbox, quiet: endpoint.quiet,
      buffers: endpoint.buffers, budget: budget, compressor: compressor, haltPolling: haltPolling)
    member.pointee.agent = Int32(bitPattern: hello.agent)
    member.pointee.publishToAgent()
    // A child comes with slots.
    member.pointee.publishSwapped()
    // Threads that fault sleep while this one works, and those that outgrow the limit, which they may do from the last message on, have to be
    // stopped soon.
    _ = vs_favour_thread(0)
    // From here on a swapoff may map pages there: nothing of the state is touched any more but by the pager.
    registry.join(target, servedBy: pager)
    // The agent does what direct reclaim does in the kernel, and has to get its turn beside threads that allocate.
    _ = vs_favour_thread(endpoint.program.agent)
    // A peer that has gone in the meantime is noticed by the pager.
    try? send(connection, [])
    return pager
  }

  private func welcome(_ connection: Int32, _ endpoint: Endpoint) throws {
    try send(
      connection, [endpoint.ring.descriptor, endpoint.family.descriptor, endpoint.doorbell, device])
  }

  private func send(_ connection: Int32, _ descriptors: [Int32]) throws {
    var welcome = vswap_welcome()
    welcome.magic = VSWAP_MAGIC
    welcome.status = UInt32(VSWAP_OK.rawValue)
    let length = MemoryLayout<vswap_welcome>.size
    let sent = vs_send(connection, &welcome, length, descriptors, descriptors.count)
    guard sent == Int64(length) else { throw KernelError(call: "sendmsg", code: Int32(truncatingIfNeeded: -sent)) }
  }

  private func receive<Message>(_ connection: Int32, _ empty: Message, _ descriptor: inout Int32) throws -> Message {
    var message = empty
    let length = MemoryLayout<Message>.size
    let received = withUnsafeMutableBytes(of: &message) { vs_receive(connection, $0.baseAddress, length, &descriptor) }
    guard received == Int64(length) else {
      if descriptor >= 0 { close(descriptor) }
      descriptor = -1
      throw Refusal(text: "a message of the wrong size, or none in time")
    }
    return message
  }
}

/// A process that wants to be served, and the agent that speaks for it.
struct Program {
  let processID: Int32
  let pidfd: Int32
  /// The agent's process number.
  let agent: Int32
}

/// All that serving one more target takes and that may not be there: made first, so that nothing fails later.
struct Endpoint {
  let program: Program
  let ring: Mapping
  let family: Mapping
  let buffers: FaultBuffers
  let doorbell: Int32
  let mailbox: Int32
  /// What a pager waits for beside faults, as one descriptor: each that is polled costs something with every fault.
  let quiet: Int32
  let statm: Int32
  let pagemap: Int32

  init(
    program: Program, connection: Int32, layer: SlotLayer, files: AreaFiles, unpackers: Unpackers
  ) throws(KernelError) {
    self.program = program
    doorbell = vs_eventfd()
    mailbox = vs_eventfd()
    quiet = vs_epoll()
    statm = open("/proc/\(program.agent)/statm", O_RDONLY | O_CLOEXEC)
    pagemap = open("/proc/\(program.agent)/pagemap", O_RDONLY | O_CLOEXEC)
    let failure = KernelError.last("open")
    do throws(KernelError) {
      guard min(doorbell, mailbox, quiet, statm, pagemap) >= 0 else { throw failure }
      for descriptor in [mailbox, doorbell, connection, program.pidfd] {
        let status = vs_epoll_add(quiet, descriptor)
        guard status == 0 else { throw KernelError(call: "epoll_ctl", code: -status) }
      }
      ring = try Mapping.create(name: "vswapd-ring", length: Int(vswap_ring_size()), sealed: true)
    } catch {
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap)
      throw error
    }
    do throws(KernelError) {
      family = try Mapping.create(name: "vswapd-family", length: pageSize, sealed: true)
    } catch {
      ring.destroy()
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap)
      throw error
    }
    do throws(KernelError) {
      buffers = try FaultBuffers.create(layer: layer, files: files, unpackers: unpackers)
    } catch {
      ring.destroy()
      family.destroy()
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap)
      throw error
    }
    vswap_ring_begin(vswap_ring_at(ring.base))
  }

  /// Whether the address space of the agent has that value at an address, now and of the files that were opened before.
  func shows(_ value: UInt64, at address: UInt64) -> Bool {
    let memory = open("/proc/\(program.agent)/mem", O_RDONLY | O_CLOEXEC)
    guard memory >= 0 else { return false }
    defer { close(memory) }
    var found: UInt64 = 0
    return pread(memory, &found, 8, off_t(clamping: address)) == 8 && found == value
  }

  func discard() {
    ring.destroy()
    family.destroy()
    buffers.destroy()
    Self.closeAll(doorbell, mailbox, quiet, statm, pagemap)
  }

  private static func closeAll(_ descriptors: Int32...) {
    for descriptor in descriptors where descriptor >= 0 { close(descriptor) }
  }
}

/// Fixed-size texts of the wire protocol.
enum Wire {
  /// Up to the first zero byte. What is no printable ASCII becomes `\xNN`: other names stay other ones, and a name that
  /// is given as it was shown is the same.
  static func text<Field>(_ field: Field) -> String {
    let digits = Array("0123456789ABCDEF".utf8)
    return withUnsafeBytes(of: field) { bytes in
      let text = bytes.prefix { $0 != 0 }.flatMap { byte in
        (0x20...0x7E).contains(byte)
          ? [byte] : [UInt8(ascii: "\\"), UInt8(ascii: "x"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
      }
      return String(decoding: text, as: UTF8.self)
    }
  }

  static func set<Field>(_ field: inout Field, to text: String) {
    withUnsafeMutableBytes(of: &field) { bytes in
      let content = text.utf8.prefix(bytes.count - 1)
      bytes.copyBytes(from: content)
      bytes[content.count] = 0
    }
  }
}
