import Glibc
import VSwapAPI

/// One line on standard error that is written over and over: bar, percentage, rate, time that is left.
struct ProgressBar {
  private let columns: Int
  private var isShown = false

  private static let cells = 24
  // Control sequences of ECMA-48.
  private static let start = "\r"
  private static let clearToEndOfLine = "\u{1B}[K"

  /// nil unless standard error is a terminal.
  static func onTerminal() -> ProgressBar? {
    guard isatty(STDERR_FILENO) == 1 else { return nil }
    var size = winsize()
    let known = ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0 && size.ws_col > 0
    return ProgressBar(columns: known ? Int(size.ws_col) : 80)
  }

  init(columns: Int) {
    self.columns = columns
  }

  mutating func show(_ progress: SwapoffProgressLine) {
    Self.write(Self.start + text(progress) + Self.clearToEndOfLine)
    isShown = true
  }

  mutating func clear() {
    if isShown { Self.write(Self.start + Self.clearToEndOfLine) }
    isShown = false
  }

  /// Fits into one line of the terminal: what does not is cut from the front of the path.
  func text(_ progress: SwapoffProgressLine) -> String {
    let done = progress.slotsTotal == 0 ? 1 : Double(progress.slotsDone) / Double(progress.slotsTotal)
    let share = max(0, min(done, 1))
    let full = Int(share * Double(Self.cells))
    let bar = String(repeating: "#", count: full) + String(repeating: "-", count: Self.cells - full)
    let figures = " [\(bar)] \(Int(share * 100))%" + rate(progress) + remaining(share, progress.seconds)
    let room = max(0, columns - 1 - figures.count)
    return String((EscapedText.shown(path: progress.path).suffix(room) + figures).prefix(max(0, columns - 1)))
  }

  private func rate(_ progress: SwapoffProgressLine) -> String {
    guard progress.seconds > 0 else { return "" }
    let rate = min(Double(progress.bytesDone) / progress.seconds, 1e15)
    return "  \(ByteSize.format(whole(rate)))/s"
  }

  private func remaining(_ share: Double, _ seconds: Double) -> String {
    guard share > 0 else { return "" }
    let left = whole(max(0, min(seconds * (1 - share) / share, 1e6)).rounded(.up))
    return left < 60 ? "  ETA \(left) s" : "  ETA \(left / 60) min \(left % 60) s"
  }

  /// Nobody can be told if it fails.
  private static func write(_ text: String) {
    let bytes = Array(text.utf8)
    _ = Glibc.write(STDERR_FILENO, bytes, bytes.count)
  }
}
