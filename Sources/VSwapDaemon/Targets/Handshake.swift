import CUserfault
import CVSwapWire
import Glibc

/// The daemon's side of attaching: from an accepted connection to a pager that serves the target.
///
/// Runs on the thread that becomes the pager's, so a slow or hostile peer keeps nobody else waiting; one deadline for all of its messages ends it.
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
  let policy: AttachPolicy
  // Of one connection.
  /// Who is at the other end, as the kernel says.
  var peer = vs_peer()
  /// When it has to be through with all of its messages (vs_monotonic_ns).
  var deadline: UInt64 = 0

  /// How long a handshake may take. The library gives up after twice that.
  private static let nanoseconds: UInt64 = 10_000_000_000

  /// Serves the connection to its end. `whenOver` is called when the handshake has ended, however that came.
  func run(_ connection: Int32, from peer: vs_peer, whenOver: () -> Void) {
    var handshake = self
    handshake.peer = peer
    handshake.deadline = vs_monotonic_ns() + Self.nanoseconds
    var pager: Pager?
    do {
      pager = try handshake.attach(connection)
      // A handshake needs more of it than serving does.
      vs_return_stack()
    } catch let refusal as Refusal {
      handshake.refuse(connection, refusal.text)
    } catch {
      handshake.refuse(connection, "\(error)")
    }
    whenOver()
    pager?.run()
  }

  /// Says why not, if that can be said at once, and closes the connection.
  func refuse(_ connection: Int32, _ text: String) {
    var welcome = vswap_welcome()
    welcome.magic = VSWAP_MAGIC
    welcome.status = UInt32(VSWAP_REFUSED.rawValue)
    Wire.set(&welcome.text, to: text)
    _ = vs_send(connection, &welcome, MemoryLayout<vswap_welcome>.size, nil, 0, 0)
    close(connection)
  }

  private func attach(_ connection: Int32) throws -> Pager {
    var passed: Int32 = -1
    let hello = try receive(connection, vswap_hello(), &passed)
    do {
      guard hello.magic == VSWAP_MAGIC, hello.version == VSWAP_VERSION else {
        throw Refusal(text: "the preload library is of another version than the daemon; install both together")
      }
      let program = try program(ofAgent: peer.pid, passed)
      switch hello.kind {
      case UInt32(VSWAP_NEW.rawValue):
        guard policy.allows(peer, on: connection) || registry.isPass(hello.token, forGroupNamed: Wire.text(hello.group))
        else { throw Refusal(text: policy.refusal(of: peer.uid)) }
        return try attachNew(connection, hello, program)
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

  /// Not of what forks may need.
  private func makeEndpoint(_ connection: Int32, _ program: Program) throws -> Endpoint {
    chunks.descriptors.refill()
    guard chunks.descriptors.isWhole else { throw Refusal(text: "the daemon has no descriptors left") }
    return try Endpoint(program: program, connection: connection, layer: layer, files: files, unpackers: unpackers)
  }

  // MARK: - A new program

  private func attachNew(_ connection: Int32, _ hello: vswap_hello, _ program: Program) throws -> Pager {
    compressor.prepare()
    let endpoint = try makeEndpoint(connection, program)
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
    let key = try groupKey(hello, endpoint.program.processID)
    var uffd = uffd
    try uffd.negotiate()
    uffd.share()
    try uffd.register(attach.staging_address, UInt64(VSWAP_BANK_PAGES) * UInt64(pageSize))
    try uffd.register(attach.identity_address, UInt64(pageSize))
    try prove(uffd, endpoint, attach.identity_address)
    guard let (group, id, token) = registry.enter(key, pass: hello.token, limit: Self.limit(hello.limit_bytes)) else {
      throw Refusal(text: registry.refusal(of: key.user))
    }
    let table: PageTable
    do {
      table = try PageTable.create(arena: chunks, share: group.account.chunks)
    } catch {
      registry.freeIdentifier(id, of: group)
      throw error
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

  /// The group that a new program asks for. Without a name it gets one of its own, by the number that the daemon knows it by.
  private func groupKey(_ hello: vswap_hello, _ processID: Int32) throws -> GroupKey {
    let given = Wire.text(hello.group)
    guard let name = GroupNames.name(in: given, of: peer.uid) else {
      throw Refusal(text: "group \(given) is not of user \(peer.uid); name one without a number and a colon in front")
    }
    return GroupKey(
      user: peer.uid, namespace: try Self.namespace(ofProcess: "\(processID)"),
      name: name.isEmpty ? "\(Wire.text(hello.name))-\(processID)" : name)
  }

  /// The PID namespace of a process ("self": the daemon), which is its inode.
  static func namespace(ofProcess process: String) throws(KernelError) -> UInt64 {
    var facts = stat()
    guard stat("/proc/\(process)/ns/pid", &facts) == 0 else { throw .last("stat") }
    return UInt64(facts.st_ino)
  }

  private static func limit(_ bytes: UInt64) -> GroupLimit {
    switch bytes {
    case 0: .none
    case VSWAP_LIMIT_AUTO: .auto
    default: .fixed(bytes: Int(clamping: bytes))
    }
  }

  // MARK: - A child that grew up

  private func attachChild(_ connection: Int32, _ hello: vswap_hello, _ program: Program) throws -> Pager {
    guard let old = registry.pager(ofChild: hello.token) else {
      throw Refusal(text: "the daemon knows no such child")
    }
    let endpoint = try makeEndpoint(connection, program)
    do {
      try welcome(connection, endpoint)
      try passInherited(connection, old, hello.token)
      var none: Int32 = -1
      let attach = try receive(connection, vswap_attach(), &none)
      if none >= 0 { close(none) }
      // The child may come with slots.
      guard endpoint.buffers.prepareToUnpack() else { throw Refusal(text: "the daemon has no memory for another target") }
      // The agent has read there who it is.
      guard endpoint.shows(hello.token, at: attach.identity_address) else {
        throw Refusal(text: "the token is none of the process that sent it")
      }
      let promise = Promise<Pager.HandOver?>()
      // Who gives up says so, and the old pager keeps the child: somebody has to serve it.
      guard old.post(.handOver(token: hello.token, promise)),
        let handOver = promise.wait(milliseconds: Self.patience) ?? promise.giveUp() ?? nil
      else { throw Refusal(text: "the child is not served any more, or its parent's pager is busy") }
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

  /// How long the pager of a child's parent is waited for, in milliseconds: as long as the child's agent waits for us.
  private static let patience = 20_000

  private func passInherited(_ connection: Int32, _ old: Pager, _ token: UInt64) throws {
    let promise = Promise<Int32?>()
    guard old.post(.duplicate(token: token, promise)),
      let inherited = promise.wait(milliseconds: Self.patience) ?? promise.giveUp() ?? nil, inherited >= 0
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
      id: member.pointee.id, processID: endpoint.program.processID, memoryID: endpoint.program.agent, name: Wire.text(hello.name),
      group: state.group, counters: member.pointee.counters, family: endpoint.family, statm: endpoint.statm,
      process: fcntl(endpoint.program.pidfd, F_DUPFD_CLOEXEC, 0), isForked: isForked)
    member.pointee.processID = endpoint.program.agent
    member.pointee.agent = Int32(bitPattern: hello.agent)
    member.pointee.pagemap = endpoint.pagemap
    member.pointee.maps = endpoint.maps
    member.pointee.link = AgentLink(
      socket: connection, program: endpoint.program.pidfd, ring: endpoint.ring, doorbell: endpoint.doorbell, budget: budget)
    let pager = Pager(
      target: target, state: member, family: registry, mailbox: endpoint.mailbox, quiet: endpoint.quiet,
      buffers: endpoint.buffers, budget: budget, compressor: compressor, haltPolling: haltPolling,
      descriptors: chunks.descriptors)
    member.pointee.registerBells()
    member.pointee.publishToAgent()
    // A child comes with slots.
    member.pointee.publishSwapped()
    // Threads that fault sleep while this one works, and those that outgrow the limit, which they may do from the last message on, have to be
    // stopped soon.
    _ = vs_favour_thread(0)
    // From here on a swapoff may map pages there: nothing of the state is touched any more but by the pager.
    registry.join(target, servedBy: pager)
    // A peer that has gone in the meantime is noticed by the pager.
    try? send(connection, [], of: state.group)
    return pager
  }

  private func welcome(_ connection: Int32, _ endpoint: Endpoint) throws {
    try send(
      connection, [endpoint.ring.descriptor, endpoint.family.descriptor, endpoint.doorbell, device])
  }

  private func send(_ connection: Int32, _ descriptors: [Int32], of group: Group? = nil) throws {
    var welcome = vswap_welcome()
    welcome.magic = VSWAP_MAGIC
    welcome.status = UInt32(VSWAP_OK.rawValue)
    if let group {
      welcome.token = group.pass
      Wire.set(&welcome.text, to: group.key.name)
    }
    let length = MemoryLayout<vswap_welcome>.size
    let sent = vs_send(connection, &welcome, length, descriptors, descriptors.count, deadline)
    guard sent == Int64(length) else { throw KernelError(call: "sendmsg", code: Int32(truncatingIfNeeded: -sent)) }
  }

  private func receive<Message>(_ connection: Int32, _ empty: Message, _ descriptor: inout Int32) throws -> Message {
    var message = empty
    let length = MemoryLayout<Message>.size
    let received = withUnsafeMutableBytes(of: &message) { vs_receive(connection, $0.baseAddress, length, &descriptor, deadline) }
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
  let maps: Int32

  init(
    program: Program, connection: Int32, layer: SlotLayer, files: AreaFiles, unpackers: Unpackers
  ) throws(KernelError) {
    self.program = program
    doorbell = vs_eventfd()
    mailbox = vs_eventfd()
    quiet = vs_epoll()
    statm = open("/proc/\(program.agent)/statm", O_RDONLY | O_CLOEXEC)
    pagemap = open("/proc/\(program.agent)/pagemap", O_RDONLY | O_CLOEXEC)
    maps = open("/proc/\(program.agent)/maps", O_RDONLY | O_CLOEXEC)
    let failure = KernelError.last("open")
    do throws(KernelError) {
      guard min(doorbell, mailbox, quiet, statm, pagemap, maps) >= 0 else { throw failure }
      for descriptor in [mailbox, doorbell, connection, program.pidfd] {
        let status = vs_epoll_add(quiet, descriptor)
        guard status == 0 else { throw KernelError(call: "epoll_ctl", code: -status) }
      }
      ring = try Mapping.create(name: "vswapd-ring", length: Int(vswap_ring_size()), sealed: true)
    } catch {
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap, maps)
      throw error
    }
    do throws(KernelError) {
      family = try Mapping.create(name: "vswapd-family", length: pageSize, sealed: true)
    } catch {
      ring.destroy()
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap, maps)
      throw error
    }
    do throws(KernelError) {
      buffers = try FaultBuffers.create(layer: layer, files: files, unpackers: unpackers)
    } catch {
      ring.destroy()
      family.destroy()
      Self.closeAll(doorbell, mailbox, quiet, statm, pagemap, maps)
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
    Self.closeAll(doorbell, mailbox, quiet, statm, pagemap, maps)
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
