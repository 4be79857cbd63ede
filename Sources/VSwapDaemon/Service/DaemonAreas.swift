import CUserfault
import Glibc
import VSwapAPI

/// Swap areas on request of the control API and of the configuration.
extension Daemon {
  func swapon(path: String, sizeBytes: Int?, priority: Int?, discards: Bool) throws(ControlError) -> AreaStatus {
    openingArea.lock()
    defer { openingArea.unlock() }
    let file: AreaFile
    do {
      file = try AreaFile.open(path: path, sizeBytes: sizeBytes, known: areas.openFiles)
    } catch {
      throw ControlError(error.code, error.message(path: path))
    }
    do {
      return Self.areaStatus(try areas.add(file, priority: priority, discards: discards))
    } catch {
      file.close(removing: file.wasMade)
      throw ControlError(.failed, "\(path) cannot be put to use as a swap area: \(error)")
    }
  }

  /// Opens what the configuration asks for.
  func openAreas(_ wanted: [SwapSpecification]) throws(StartupError) {
    for area in wanted {
      do {
        _ = try swapon(path: area.path, sizeBytes: area.sizeBytes, priority: area.priority, discards: area.discards)
      } catch {
        throw StartupError(message: "swap area: \(error.message)")
      }
    }
  }

  func swapoff(path: String?, dryRun: Bool, report: (SwapoffLine) -> Bool) throws(ControlError) {
    guard let path else { return swapoffAll(dryRun: dryRun, report) }
    do {
      _ = report(.result(try swapoff(areaPath(path), dryRun, report)))
    } catch {
      throw Self.controlError(error, path)
    }
  }

  /// What cannot be retired is told in its result, and the others get their turn.
  private func swapoffAll(dryRun: Bool, _ report: (SwapoffLine) -> Bool) {
    for area in areas.list() {
      let reply: SwapoffReply
      do {
        reply = try swapoff(area.path, dryRun, report)
      } catch SwapoffError.unknownArea {
        continue  // somebody else was faster
      } catch {
        let reason = Self.controlError(error, area.path).message
        reply = SwapoffReply(path: area.path, state: .refused, reason: reason)
      }
      guard report(.result(reply)), reply.state != .cancelled else { return }
    }
  }

  private func swapoff(
    _ path: String, _ dryRun: Bool, _ report: (SwapoffLine) -> Bool
  ) throws(SwapoffError) -> SwapoffReply {
    Self.reply(
      try areas.swapoff(path: path, dryRun: dryRun) { progress in
        report(
          .progress(
            SwapoffProgressLine(
              path: progress.path, slotsDone: progress.slotsDone, slotsTotal: progress.slotsTotal,
              bytesDone: progress.bytesDone, bytesTotal: progress.bytesTotal,
              seconds: Double(progress.nanoseconds) / 1e9)))
      })
  }

  /// The path under which an area is known: links are followed, unless its file has been taken away.
  private func areaPath(_ path: String) -> String {
    guard !areas.list().contains(where: { $0.path == path }), let real = realpath(path, nil) else { return path }
    defer { free(real) }
    return String(cString: real)
  }

  static func areaStatus(_ info: AreaInfo) -> AreaStatus {
    AreaStatus(
      path: info.path, type: info.isBlockDevice ? .device : .file, sizeBytes: info.sizeBytes, usedBytes: info.usedBytes,
      slots: info.slots, priority: info.priority, state: info.state.rawValue, direct: info.isDirect, discard: info.discards,
      readErrors: info.readErrors, writeErrors: info.writeErrors)
  }

  private static func reply(_ result: SwapoffResult) -> SwapoffReply {
    let state: SwapoffReply.State =
      switch result.state {
      case .off: .off
      case .cancelled: .cancelled
      case .refused: .refused
      }
    return SwapoffReply(
      path: result.path, slots: result.slots, bytes: result.bytes, toTarget: result.toTarget, toPool: result.toPool,
      toAreas: result.toAreas, lost: result.lost, wallSeconds: Double(result.wallNanoseconds) / 1e9,
      userSeconds: Double(result.userNanoseconds) / 1e9, systemSeconds: Double(result.systemNanoseconds) / 1e9,
      state: state, reason: result.reason)
  }

  private static func controlError(_ error: SwapoffError, _ path: String) -> ControlError {
    switch error {
    case .unknownArea: ControlError(.notFound, "\(path) is no swap area; see vswapctl swapon --show")
    case .alreadyDraining: ControlError(.busy, "\(path) is being retired already; wait for that, or end it with Ctrl-C")
    case .failed(let reason): ControlError(.failed, "\(path) cannot be retired: \(reason)")
    }
  }
}
