import CUserfault
import Glibc
import Logging
import VSwapAPI

/// Owns everything: the slot layer, the threads, the sockets. `run` is the daemon's life.
public final class Daemon: @unchecked Sendable {
  let registry: TargetRegistry
  let layer: SlotLayer
  let chunks: ChunkArena
  let budget: FrameBudget
  let keeper: LimitKeeper
  let areas: SwapAreas
  /// Held while an area is opened, so that two requests for one path take turns.
  let openingArea = Lock.create()
  let startedAt = vs_monotonic_ns()
  let names: GroupNames
  private let compressor: Compressor
  private let unpackers: Unpackers
  private let haltPolling = HaltPolling.create()
  private let writeback: Writeback
  private let logger: Logger
  /// Rings when targets come or go, and after requests.
  let changed: Int32
  /// Milliseconds without a ring after which a daemon without targets lets go of its code.
  private static let idleMilliseconds: Int32 = 2000
  /// Between two attempts to give those their pages back who could not take them.
  private static let leavingMilliseconds: Int32 = 5000
  /// Most milliseconds that all pagers together may take for that.
  private static let leavingPatience = 120_000
  /// Whom the operator was told of that the daemon stays for.
  private var toldOf: [String] = []

  /// Pages of the swap cache: 16 MiB, half of which stays filled.
  private static let cacheFrames = 4096
  private static let keptFrames = 2048
  /// Slots for 256 GiB of pages; the table takes RAM for those in use only.
  private static let maximumSlots = 1 << 26
  private static let maximumChunks = maximumSlots / 64
  static let poolReserve = 64 << 30
  /// Descriptors for children when there are no others.
  private static let keptDescriptors = 64

  private init(poolLimitBytes: Int, descriptorLimit: Int, quota: UserQuota) throws(KernelError) {
    names = GroupNames(user: geteuid(), namespace: try Handshake.namespace(ofProcess: "self"))
    // Before everything else, so that their numbers are low.
    let descriptors = DescriptorReserve.create(atMost: min(Self.keptDescriptors, descriptorLimit / 16))
    let logger = Logger(label: "vswapd") { StreamLogHandler.standardError(label: $0) }
    self.logger = logger
    let changed = vs_eventfd()
    guard changed >= 0 else { throw KernelError(call: "eventfd", code: -changed) }
    self.changed = changed
    let keeperBell = vs_eventfd()
    guard keeperBell >= 0 else { throw KernelError(call: "eventfd", code: -keeperBell) }
    layer = try .create(
      maximumSlots: Self.maximumSlots, cacheFrames: Self.cacheFrames, poolReserveBytes: Self.poolReserve,
      poolLimitBytes: min(poolLimitBytes, Self.poolReserve))
    chunks = try .create(
      maximumChunks: 4 * Self.maximumChunks, keptForForks: 3 * Self.maximumChunks, descriptors: descriptors)
    budget = layer.budget
    let log: @Sendable (String) -> Void = { text in logger.warning("\(text)") }
    registry = TargetRegistry(
      dictionaries: layer.dictionaries, quota: quota,
      // The keeper has to know of a target before that grows; this process's main thread may have to wait for a CPU.
      whenJoined: { _ = vs_eventfd_signal(keeperBell) },
      whenChanged: { _ = vs_eventfd_signal(changed) }, log: log)
    compressor = try Compressor(layer: layer, budget: budget, keep: Self.keptFrames)
    unpackers = try .create(workers: min(4, sysconf(Int32(_SC_NPROCESSORS_ONLN))), layer: layer)
    writeback = try Writeback(layer: layer, budget: budget)
    areas = SwapAreas(
      layer: layer, files: .create(), writeback: writeback, sink: TargetSink(registry: registry), log: log)
    let capacity: @Sendable () -> Int = { [layer, areas] in
      areas.list().reduce(layer.pool.limitBytes) { $0 + $1.sizeBytes } / pageSize
    }
    keeper = LimitKeeper(
      registry: registry, budget: budget, bell: keeperBell, quotas: QuotaWatch(quota: quota, capacity: capacity))
    compressor.whenFull = { [writeback, registry, layer] in
      writeback.nudge()
      if layer.mustDropCopies { for pager in registry.pagers() { pager.nudge() } }
    }
    writeback.whenRoom = { [compressor] in compressor.nudge() }
  }

  /// Serves until told to stop. Returns the exit status.
  public static func run(_ configuration: ServiceConfiguration) throws(StartupError) -> Int32 {
    let device = try StartupChecks.openDevice()
    let directory = try RuntimeDirectory(path: configuration.runtimeDirectory)
    do {
      return try serve(configuration, device, directory)
    } catch let error as StartupError {
      directory.remove(always: false)
      throw error
    } catch {
      directory.remove(always: false)
      throw StartupError(message: "starting failed: \(error); check memory and descriptor limits")
    }
  }

  private static func serve(
    _ configuration: ServiceConfiguration, _ device: Int32, _ directory: RuntimeDirectory
  ) throws -> Int32 {
    let policy = try configuration.attachPolicy()
    let descriptorLimit = vs_raise_descriptor_limit(1 << 19)
    // Without it the daemon works as well, and is larger.
    _ = vs_return_freed_memory()
    let signals = vs_signal_descriptor()
    guard signals >= 0 else { throw KernelError(call: "signalfd", code: -signals) }
    let reserve = ExitReserve()
    let daemon = try Daemon(
      poolLimitBytes: configuration.poolLimitBytes ?? defaultPoolLimit(), descriptorLimit: max(0, Int(descriptorLimit)),
      quota: configuration.userQuota(chunks: maximumChunks))
    defer { daemon.areas.closeAll() }
    try daemon.openAreas(configuration.swapAreas)
    let attach = try daemon.makeAttachServer(device, directory, policy)
    let control = try ControlServer(
      plane: daemon, socketPath: RuntimePaths.controlSocket(in: directory.path))
    let cpus = sysconf(Int32(_SC_NPROCESSORS_ONLN))
    let zstdWorkers = max(1, min(4, cpus / 2))
    try daemon.compressor.start(workers: zstdWorkers, helpers: min(4, cpus) - zstdWorkers)
    try daemon.unpackers.start()
    daemon.haltPolling.start()
    try daemon.keeper.start()
    try attach.start()
    try control.start()
    vs_drop_code()
    if vs_lock_memory() != 0 { daemon.logger.notice("memory is not locked: the daemon itself may be swapped out") }
    daemon.announce(configuration, directory)
    // What the manager of `vswapctl run` is told is not an embedded daemon's business.
    var manager = configuration.embedded == nil ? ServiceManager(socket: configuration.notifySocket) : nil
    manager?.ready()
    daemon.waitForEnd(signals, configuration.embedded, &manager)
    attach.stop()
    reserve.release()
    control.stop()
    directory.remove(always: configuration.embedded != nil)
    return 0
  }

  /// More may fit now, or what is there is too much.
  func poolLimitChanged() {
    writeback.nudge()
    compressor.nudge()
    if layer.pool.isNearLimit { compressor.whenFull() }
  }

  /// Half of the machine's memory, or of what the daemon's control groups leave it.
  private static func defaultPoolLimit() -> Int {
    let machine = sysconf(Int32(_SC_PHYS_PAGES)) * pageSize
    return max(ByteSize.minimumPoolLimit, min(machine, ControlGroups.memoryLimit() ?? machine) / 2)
  }

  private func makeAttachServer(
    _ device: Int32, _ directory: RuntimeDirectory, _ policy: AttachPolicy
  ) throws(KernelError) -> AttachServer {
    let handshake = Handshake(
      registry: registry, layer: layer, chunks: chunks, budget: budget, compressor: compressor, unpackers: unpackers,
      haltPolling: haltPolling, files: areas.files, device: device, policy: policy)
    let logger = self.logger
    return try AttachServer(
      path: RuntimePaths.attachSocket(in: directory.path), handshake: handshake, queue: HandshakeQueue(),
      log: { logger.error("\($0)") })
  }

  private func announce(_ configuration: ServiceConfiguration, _ directory: RuntimeDirectory) {
    guard let embedded = configuration.embedded else {
      logger.info("serving in \(directory.path)")
      return
    }
    let line = "ready\n"
    _ = line.withCString { write(embedded.readyDescriptor, $0, line.utf8.count) }
    close(embedded.readyDescriptor)
  }

  /// Returns when the daemon is to leave and nobody depends on it any more.
  private func waitForEnd(_ signals: Int32, _ embedded: EmbeddedHandles?, _ manager: inout ServiceManager?) {
    var polled = [
      pollfd(fd: signals, events: Int16(POLLIN), revents: 0), pollfd(fd: changed, events: Int16(POLLIN), revents: 0),
      pollfd(fd: embedded?.lifelineDescriptor ?? -1, events: Int16(POLLIN), revents: 0),
      pollfd(fd: registry.endedProcesses, events: Int16(POLLIN), revents: 0),
    ]
    var orphaned = false
    var isIdle = true
    // Nobody asks again: what could not be given back is tried again until somebody ends the daemon.
    var isLeaving = false
    // Most address spaces since memory was given back.
    var most = 0
    while true {
      let population = registry.population
      most = max(most, population)
      let mayGiveBack = !isIdle && (population < most || most == 0)
      let pause = pollTime(isLeaving, mayGiveBack, reports: manager != nil && population > 0)
      let ready = poll(&polled, nfds_t(polled.count), pause)
      if !isLeaving { tell(&manager) }
      guard ready > 0 else {
        if isLeaving && dissolve(&manager) { return }
        if ready == 0 && mayGiveBack && !isLeaving {
          if population == 0 { vs_drop_code() }
          if population < most { vs_return_heap() }
          most = population
        }
        isIdle = true
        continue
      }
      isIdle = false
      if polled[0].revents != 0, vs_next_signal(signals) > 0 {
        isLeaving = true
        if dissolve(&manager) { return }
      }
      if polled[1].revents != 0 {
        vs_eventfd_clear(changed)
        keeper.nudge()
      }
      if polled[2].revents != 0 {
        orphaned = true
        polled[2].fd = -1
      }
      if polled[3].revents != 0 { registry.removeEndedProcesses() }
      if orphaned && registry.population == 0 { return }
    }
  }

  /// Milliseconds after which there is something to do though nothing has happened; -1: never.
  private func pollTime(_ isLeaving: Bool, _ mayGiveBack: Bool, reports: Bool) -> Int32 {
    if isLeaving { return Self.leavingMilliseconds }
    if reports { return Int32(ServiceManager.interval / 1_000_000) }
    return mayGiveBack ? Self.idleMilliseconds : -1
  }

  /// Tells the service manager how many are served, from time to time.
  private func tell(_ manager: inout ServiceManager?) {
    let now = vs_monotonic_ns()
    if manager?.isDue(at: now) == true { manager?.report(figures(), at: now) }
  }

  private func figures() -> ServiceManager.Figures {
    ServiceManager.Figures(
      processes: registry.population,
      swappedBytes: registry.snapshot().reduce(0) { $0 + $1.group.account.swapped } * pageSize)
  }

  /// Gives everyone their pages back. false: somebody cannot take them now, so the daemon stays.
  private func dissolve(_ manager: inout ServiceManager?) -> Bool {
    var asked: [(pager: Pager, promise: Promise<Pager.RestoreResult>)] = []
    for pager in registry.pagers() {
      let promise = Promise<Pager.RestoreResult>()
      if pager.post(.dissolve(promise)) { asked.append((pager, promise)) }
    }
    let deadline = vs_monotonic_ns() + UInt64(Self.leavingPatience) * 1_000_000
    var stuck: [String] = []
    for (pager, promise) in asked {
      // Who has not begun by then does not any more, before it is asked again.
      let result = wait(for: promise, of: pager, until: deadline, &manager) ?? promise.giveUp() ?? .stuck
      if case .stuck = result { stuck.append("\(pager.target.name) (\(pager.target.processID))") }
    }
    tell(stuck.sorted())
    return stuck.isEmpty
  }

  private func tell(_ stuck: [String]) {
    guard stuck != toldOf else { return }
    toldOf = stuck
    guard !stuck.isEmpty else { return }
    let names = stuck.prefix(8).joined(separator: ", ") + (stuck.count > 8 ? " and \(stuck.count - 8) more" : "")
    logger.error(
      "cannot leave: \(names) cannot take back what is swapped out. If stopped, continue or end them: the daemon leaves then")
  }

  /// The service manager hears of it every second. nil: it has not answered by then.
  private func wait(
    for promise: Promise<Pager.RestoreResult>, of pager: Pager, until deadline: UInt64, _ manager: inout ServiceManager?
  ) -> Pager.RestoreResult? {
    while true {
      manager?.stopping(figures())
      let now = vs_monotonic_ns()
      guard now < deadline else { return nil }
      let left = Int((deadline - now) / 1_000_000)
      if let result = pager.answer(promise, within: min(max(left, 1), 1000)) { return result }
    }
  }
}
