import ArgumentParser
import FoundationEssentials
import Glibc
import NIOCore
import VSwapAPI

/// What people see of a swapoff. Used by one thread at a time: the client's while lines come, then the command's.
final class SwapoffReport: @unchecked Sendable {
  private let json: Bool
  private let dryRun: Bool
  /// nil: nobody looks.
  private var bar = ProgressBar.onTerminal()
  /// Whether a line has come.
  private(set) var hasBegun = false
  /// Why what was said is not to be used, or could not be printed.
  private var failure: (any Error)?
  private var staysActive = false

  init(json: Bool, dryRun: Bool) {
    self.json = json
    self.dryRun = dryRun
  }

  /// One line from the daemon.
  func take(_ line: ByteBuffer) {
    guard failure == nil else { return }
    hasBegun = true
    do {
      switch try JSONDecoder().decode(SwapoffLine.self, from: Data(line.readableBytesView)) {
      case .progress(let progress): bar?.show(progress)
      case .result(let reply): try show(reply, line)
      case .error(let error): failure = CommandFailure(message: error.message)
      }
    } catch is DecodingError {
      failure = CommandFailure(message: "what answers is not this vswapd: a line makes no sense; check --socket")
    } catch {
      failure = error
    }
  }

  /// Takes the bar off the terminal.
  func endProgress() {
    bar?.clear()
  }

  /// Throws what went wrong, and the status 1 if an area stays.
  func finish() throws {
    if let failure { throw failure }
    if staysActive { throw ExitCode.failure }
  }

  private func show(_ reply: SwapoffReply, _ line: ByteBuffer) throws {
    endProgress()
    if json { try StandardOutput.write(Array(line.readableBytesView)) }
    if reply.lost > 0 {
      StandardError.writeLine(
        "vswapctl: \(EscapedText.shown(path: reply.path)): \(reply.lost) slots could not be read; programs get SIGBUS where they touch them"
      )
    }
    switch reply.state {
    case .off:
      if !json { try StandardOutput.write(sentence(reply)) }
    case .refused:
      StandardError.writeLine(
        "vswapctl: \(EscapedText.shown(path: reply.path)) stays active: \(reply.reason ?? "there is no room")")
      staysActive = true
    case .cancelled:
      StandardError.writeLine("vswapctl: \(EscapedText.shown(path: reply.path)) stays active: the swapoff was cancelled")
      staysActive = true
    }
  }

  private func sentence(_ reply: SwapoffReply) -> String {
    let slots = reply.slots == 1 ? "1 slot" : "\(reply.slots) slots"
    let amount = "\(slots) (\(ByteSize.format(reply.bytes)))"
    let places = "\(reply.toTarget) to programs, \(reply.toPool) to the pool, \(reply.toAreas) to other areas"
    if dryRun { return "\(EscapedText.shown(path: reply.path)): can be retired: \(amount), \(places)\n" }
    return "\(EscapedText.shown(path: reply.path)): retired in \(Self.seconds(reply.wallSeconds)): \(amount), \(places)\n"
  }

  /// For example "0.25 s".
  private static func seconds(_ seconds: Double) -> String {
    let hundredths = Int(max(0, min(seconds, 1e9)) * 100 + 0.5)
    return "\(hundredths / 100).\(hundredths / 10 % 10)\(hundredths % 10) s"
  }
}
