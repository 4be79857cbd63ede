import CUserfault
import Glibc

/// One swap area, as `swapon --show` has it. Sizes in bytes.
struct AreaInfo: Sendable {
  var path: String
  var isBlockDevice: Bool
  var sizeBytes: Int
  /// Of segments in use.
  var usedBytes: Int
  /// Pages that lie in it.
  var slots: Int
  var priority: Int
  var state: AreaState
  var readErrors: Int
  var writeErrors: Int
  /// Reads and writes go past the page cache.
  var isDirect: Bool
  /// Free segments are given back to the file system or the device.
  var discards: Bool
}

enum AreaState: String, Sendable {
  case active
  /// swapoff is under way.
  case draining
  /// No segment is free.
  case full
  /// There was no room for the latest write where the area lies; it is tried again every second.
  case noSpace = "no_space"
  /// A write failed: nothing more is written to it.
  case faulty
}

struct SwapoffProgress: Sendable {
  var path: String
  var slotsDone: Int
  var slotsTotal: Int
  var bytesDone: Int
  var bytesTotal: Int
  var nanoseconds: UInt64
}

struct SwapoffResult: Sendable {
  enum State: String, Sendable {
    case off
    case cancelled
    /// There is no room for its pages; or, of a dry run, there would be none.
    case refused
  }

  var path: String
  var slots: Int
  var bytes: Int
  var toTarget: Int
  var toPool: Int
  var toAreas: Int
  var lost: Int
  var wallNanoseconds: UInt64
  var userNanoseconds: UInt64
  var systemNanoseconds: UInt64
  var state: State
  /// Why it was refused, with figures.
  var reason: String?
}

enum SwapoffError: Error {
  case unknownArea
  case alreadyDraining
  case failed(String)
}

/// The swap areas in use. Any thread may call.
final class SwapAreas: @unchecked Sendable {
  private struct Area {
    var number: Int
    var file: AreaFile
    var discards: Bool
    var state: AreaState = .active
    /// What was logged already.
    var errorsTold = 0
    var lackOfRoomTold = false
  }

  let files: AreaFiles
  private let layer: SlotLayer
  private let writeback: Writeback
  private let sink: any PageSink
  private let log: @Sendable (String) -> Void
  private let lock = Lock.create()
  private var areas: [Area] = []
  private var hasStarted = false

  init(
    layer: SlotLayer, files: AreaFiles, writeback: Writeback, sink: any PageSink, log: @escaping @Sendable (String) -> Void
  ) {
    self.layer = layer
    self.files = files
    self.writeback = writeback
    self.sink = sink
    self.log = log
  }

  /// Takes over the file. nil as priority: the next lower negative one, from -2 on, as swapon(8) has it. `discards`: segments that are free are
  /// given back to the file system or the device; else the area keeps all that it has.
  func add(_ file: AreaFile, priority: Int?, discards: Bool = false) throws(KernelError) -> AreaInfo {
    lock.lock()
    defer { lock.unlock() }
    if !hasStarted {
      try writeback.start(files: files)
      hasStarted = true
    }
    let lowest = areas.map { Int(layer.areas.priority($0.number)) }.filter { $0 < 0 }.min() ?? -1
    guard
      let number = try layer.areas.add(
        bytes: file.sizeBytes, priority: Int32(clamping: priority ?? lowest - 1), identity: file.identity, rotation: .draining)
    else { throw KernelError(call: "swapon: there are 16 areas already", code: ENOSPC) }
    Interleaving.point()
    let area = Area(number: number, file: file, discards: discards)
    areas.append(area)
    files.set(number, file.descriptor, discards: discards)
    layer.areas.setRotation(number, .active)
    layer.enableWriteback()
    writeback.nudge()
    return info(area)
  }

  /// The open files, for those that must not be opened twice.
  var openFiles: [AreaFile] {
    lock.lock()
    defer { lock.unlock() }
    return areas.map { $0.file }
  }

  func list() -> [AreaInfo] {
    lock.lock()
    defer { lock.unlock() }
    for index in areas.indices { tellErrors(&areas[index]) }
    return areas.map(info)
  }

  private func tellErrors(_ area: inout Area) {
    let figures = layer.areas.figures(area.number)
    if figures.lacksRoom != area.lackOfRoomTold {
      area.lackOfRoomTold = figures.lacksRoom
      log(
        "\(area.file.path): "
          + (figures.lacksRoom ? "no room for what is written there; tried again every second" : "there is room again"))
    }
    let errors = figures.readErrors + figures.writeErrors
    guard errors > area.errorsTold else { return }
    area.errorsTold = errors
    log(
      "\(area.file.path): \(figures.readErrors) reads and \(figures.writeErrors) writes failed so far, the latest at byte \(figures.errorOffset)"
    )
  }

  private func info(_ area: Area) -> AreaInfo {
    let figures = layer.areas.figures(area.number)
    var state = area.state
    if state == .active {
      if layer.areas.rotation(area.number) == .faulty {
        state = .faulty
      } else if figures.lacksRoom {
        state = .noSpace
      } else if layer.areas.freeBytes(area.number) <= AreaPlace.segmentBytes {
        state = .full
      }
    }
    return AreaInfo(
      path: area.file.path, isBlockDevice: area.file.isBlockDevice, sizeBytes: area.file.sizeBytes,
      usedBytes: figures.usedBytes, slots: figures.liveObjects, priority: Int(layer.areas.priority(area.number)),
      state: state, readErrors: figures.readErrors, writeErrors: figures.writeErrors, isDirect: area.file.isDirect,
      discards: area.discards)
  }

  /// Closes everything; the pages in it are gone. When the daemon leaves and nobody depends on it any more.
  func closeAll() {
    lock.lock()
    for area in areas {
      layer.areas.setRotation(area.number, .draining)
      files.set(area.number, -1)
    }
    lock.unlock()
    if hasStarted { writeback.barrier() }
    lock.lock()
    for area in areas { area.file.close(removing: true) }
    areas = []
    lock.unlock()
  }

  // MARK: - swapoff

  private static let readDepth = 16

  /// Blocks until it is done. `progress` is called a few times a second, from the calling thread; false from it cancels.
  func swapoff(
    path: String, dryRun: Bool, progress: (SwapoffProgress) -> Bool
  ) throws(SwapoffError) -> SwapoffResult {
    let area = try beginSwapoff(path, dryRun: dryRun)
    let start = Stopwatch()
    var result = SwapoffResult(
      path: area.file.path, slots: 0, bytes: 0, toTarget: 0, toPool: 0, toAreas: 0, lost: 0, wallNanoseconds: 0,
      userNanoseconds: 0, systemNanoseconds: 0, state: .off)
    // They would only be in the way.
    sink.dropCopies()
    if let reason = lackOfRoom(area) {
      result.state = .refused
      result.reason = reason
      if !dryRun { resume(area) }
      return result
    }
    if dryRun {
      let figures = layer.areas.figures(area.number)
      result.slots = figures.liveObjects
      result.bytes = figures.liveBytes
      return result
    }
    do {
      // What is being written to it is waited for; nothing more comes.
      writeback.barrier()
      let tally = try empty(area, start, progress, &result)
      fill(&result, tally, start)
      if result.state == .off { remove(area) } else { resume(area) }
      return result
    } catch {
      resume(area)
      throw .failed("\(error)")
    }
  }

  private func beginSwapoff(_ path: String, dryRun: Bool) throws(SwapoffError) -> Area {
    lock.lock()
    defer { lock.unlock() }
    guard let index = areas.firstIndex(where: { $0.file.path == path }) else { throw .unknownArea }
    guard areas[index].state != .draining else { throw .alreadyDraining }
    if !dryRun {
      areas[index].state = .draining
      layer.areas.setRotation(areas[index].number, .draining)
    }
    return areas[index]
  }

  private func empty(
    _ area: Area, _ start: Stopwatch, _ progress: (SwapoffProgress) -> Bool, _ result: inout SwapoffResult
  ) throws(KernelError) -> Swapoff.Tally {
    let reading = try UringStorage(files: files, depth: Self.readDepth)
    let writing = try UringStorage(files: files, depth: 3)
    let swapoff = try Swapoff(layer: layer, area: area.number, storage: reading, writing: writing, sink: sink)
    let before = layer.areas.figures(area.number)
    var isCancelled = false
    let workers = min(4, sysconf(Int32(_SC_NPROCESSORS_ONLN))) + 1
    let isEmpty = try swapoff.run(workers: workers) { tally in
      let goOn = progress(
        SwapoffProgress(
          path: area.file.path, slotsDone: tally.slots, slotsTotal: max(before.liveObjects, tally.slots),
          bytesDone: tally.bytes, bytesTotal: max(before.liveBytes, tally.bytes), nanoseconds: start.wall))
      if !goOn { isCancelled = true }
      return goOn
    }
    if !isEmpty {
      result.state = isCancelled ? .cancelled : .refused
      if !isCancelled {
        result.reason = "\(layer.areas.figures(area.number).liveObjects) pages found no room on the way"
      }
    }
    return swapoff.tally
  }

  private func fill(_ result: inout SwapoffResult, _ tally: Swapoff.Tally, _ start: Stopwatch) {
    result.slots = tally.slots
    result.bytes = tally.bytes
    result.toTarget = tally.toTarget
    result.toPool = tally.toPool
    result.toAreas = tally.toAreas
    result.lost = tally.lost
    result.wallNanoseconds = start.wall
    result.userNanoseconds = start.user
    result.systemNanoseconds = start.system
  }

  /// What is in the way of emptying the area, with figures; nil: there is room.
  private func lackOfRoom(_ area: Area) -> String? {
    let figures = layer.areas.figures(area.number)
    let pages = sink.totalRoom()
    // Compressed pages take a little more in the pool than in the area, in blocks of its classes.
    let pool = max(0, layer.pool.limitBytes - layer.pool.arenaBytes) / 8 * 7
    lock.lock()
    let others = areas.filter { $0.number != area.number && layer.areas.rotation($0.number) == .active }
      .reduce(0) { $0 + max(0, layer.areas.freeBytes($1.number) - 2 * AreaPlace.segmentBytes) }
    lock.unlock()
    let average = max(1, figures.liveBytes / max(1, figures.liveObjects))
    let places = pages + (pool + others) / average
    guard places < figures.liveObjects else { return nil }
    let mib = { (bytes: Int) in "\((bytes + (1 << 19)) >> 20) MiB" }
    return "\(figures.liveObjects) pages lie in it (\(mib(figures.liveBytes)) compressed); there is room for \(pages) pages "
      + "below the groups' limits, \(mib(pool)) in the pool and \(mib(others)) in other areas"
  }

  /// In use again.
  private func resume(_ area: Area) {
    lock.lock()
    let hasFailed = layer.areas.figures(area.number).writeErrors > 0
    layer.areas.setRotation(area.number, hasFailed ? .faulty : .active)
    if let index = areas.firstIndex(where: { $0.number == area.number }) { areas[index].state = .active }
    lock.unlock()
    writeback.nudge()
  }

  /// Its path is another area's to have only when its file has gone, so until then it is listed, as one that is retired.
  private func remove(_ area: Area) {
    files.set(area.number, -1)
    // A device can be opened again only when nobody holds it any more.
    sink.filesChanged()
    writeback.barrier()
    area.file.close(removing: true)
    lock.lock()
    layer.areas.remove(area.number)
    areas.removeAll { $0.number == area.number }
    lock.unlock()
  }
}
