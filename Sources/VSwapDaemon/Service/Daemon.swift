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
  private let compressor: Compressor
  private let unpackers: Unpackers
  private let haltPolling = HaltPolling.create()
  private let writeback: Writeback
  private let logger: Logger
  /// Rings when targets come or go, and after requests.
  let changed: Int32
  /// Milliseconds without a ring after which a daemon without targets lets go of its code.
  private static let idleMilliseconds: Int32 = 2000
  /// Milliseconds until a service that is to stop tries again to give back what it could not.
  private static let retryMilliseconds: Int32 = 1000

  /// Pages of the swap cache: 16 MiB, half of which stays filled.
  private static let cacheFrames = 4096
  private static let keptFrames = 2048
  /// Slots for 256 GiB of pages; the table takes RAM for those in use only.
  private static let maximumSlots = 1 << 26
  static let poolReserve = 64 << 30

  private init(poolLimitBytes: Int) throws(KernelError) {
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
    chunks = try .create(maximumChunks: Self.maximumSlots / 64)
    budget = layer.budget
    let log: @Sendable (String) -> Void = { text in logger.warning("\(text)") }
    registry = TargetRegistry(
      dictionaries: layer.dictionaries,
      // The keeper has to know of a target before that grows; this process's main thread may have to wait for a CPU.
      whenJoined: { _ = vs_eventfd_signal(keeperBell) },
      whenChanged: { _ = vs_eventfd_signal(changed) }, log: log)
    compressor = try Compressor(layer: layer, budget: budget, keep: Self.keptFrames)
    unpackers = try .create(workers: min(4, sysconf(Int32(_SC_NPROCESSORS_ONLN))), layer: layer)
    keeper = LimitKeeper(registry: registry, budget: budget, bell: keeperBell)
    writeback = try Writeback(layer: layer, budget: budget)
    areas = SwapAreas(
      layer: layer, files: .create(), writeback: writeback, sink: TargetSink(registry: registry), log: log)
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
    _ = vs_raise_descriptor_limit(1 << 19)
    // Without it the daemon works as well, and is larger.
    _ = vs_return_freed_memory()
    let signals = vs_signal_descriptor()
    guard signals >= 0 else { throw KernelError(call: "signalfd", code: -signals) }
    let daemon = try Daemon(poolLimitBytes: configuration.poolLimitBytes ?? defaultPoolLimit())
    defer { daemon.areas.closeAll() }
    try daemon.openAreas(configuration.swapAreas)
    let attach = try daemon.makeAttachServer(device, directory, embedded: configuration.embedded != nil)
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

  /// Half of the machine's memory.
  private static func defaultPoolLimit() -> Int {
    sysconf(Int32(_SC_PHYS_PAGES)) / 2 * pageSize
  }

  private func makeAttachServer(
    _ device: Int32, _ directory: RuntimeDirectory, embedded: Bool
  ) throws(KernelError) -> AttachServer {
    let handshake = Handshake(
      registry: registry, layer: layer, chunks: chunks, budget: budget, compressor: compressor, unpackers: unpackers,
      haltPolling: haltPolling, files: areas.files, device: device)
    let logger = self.logger
    // A target of another user is served too; what is embedded serves one command, whose processes may change their user.
    return try AttachServer(
      path: RuntimePaths.attachSocket(in: directory.path), handshake: handshake, mode: 0o666,
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
    ]
    var orphaned = false
    var isIdle = true
    // A service manager does not ask again: what could not be given back is tried again until it ends the daemon.
    var isStopping = false
    while true {
      let ready = poll(&polled, nfds_t(polled.count), pollTime(isIdle, isStopping, manager != nil))
      if isStopping ? dissolve(&manager) : tell(&manager) { return }
      guard ready > 0 else {
        if ready == 0 && registry.population == 0 { vs_drop_code() }
        isIdle = true
        continue
      }
      isIdle = false
      if polled[0].revents != 0, vs_next_signal(signals) > 0 {
        if dissolve(&manager) { return }
        isStopping = manager != nil
      }
      if polled[1].revents != 0 {
        vs_eventfd_clear(changed)
        keeper.nudge()
      }
      if polled[2].revents != 0 {
        orphaned = true
        polled[2].fd = -1
      }
      if orphaned && registry.population == 0 { return }
    }
  }

  /// Milliseconds after which there is something to do though nothing has happened; -1: never.
  private func pollTime(_ isIdle: Bool, _ isStopping: Bool, _ isService: Bool) -> Int32 {
    if isStopping { return Self.retryMilliseconds }
    if registry.population > 0 { return isService ? Int32(ServiceManager.interval / 1_000_000) : -1 }
    return isIdle ? -1 : Self.idleMilliseconds
  }

  /// Tells the service manager how many are served, from time to time. Returns false: the daemon goes on.
  private func tell(_ manager: inout ServiceManager?) -> Bool {
    let now = vs_monotonic_ns()
    if manager?.isDue(at: now) == true { manager?.report(figures(), at: now) }
    return false
  }

  private func figures() -> ServiceManager.Figures {
    ServiceManager.Figures(
      processes: registry.population,
      swappedBytes: registry.snapshot().reduce(0) { $0 + $1.group.account.swapped } * pageSize)
  }

  /// Gives everyone their pages back. false: somebody cannot take them now, so the daemon stays.
  private func dissolve(_ manager: inout ServiceManager?) -> Bool {
    var promises: [Promise<Pager.RestoreResult>] = []
    for pager in registry.pagers() {
      let promise = Promise<Pager.RestoreResult>()
      if pager.post(.dissolve(promise)) { promises.append(promise) }
    }
    var stuck = 0
    for promise in promises {
      guard let result = wait(for: promise, &manager) else {
        stuck += 1
        continue
      }
      if case .stuck = result { stuck += 1 }
    }
    if stuck > 0 { logger.error("\(stuck) targets cannot take their pages back now; staying. Are they stopped?") }
    return stuck == 0
  }

  /// The service manager hears of it every second.
  private func wait(
    for promise: Promise<Pager.RestoreResult>, _ manager: inout ServiceManager?
  ) -> Pager.RestoreResult? {
    for _ in 0..<120 {
      manager?.stopping(figures())
      if let result = promise.wait(milliseconds: 1000) { return result }
    }
    return nil
  }
}
