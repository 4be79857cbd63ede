/// What a pager has unpacked ahead of one upward stream of faults: two windows, so that one is being unpacked while pages of the other
/// are mapped.
///
/// A trivial struct, to be kept in one place, for the pager's thread alone.
struct ReadAhead {
  private let windows: (ReadAheadWindow, ReadAheadWindow)
  private let workers: Unpackers
  /// Address space of the stream.
  private var token: UInt64 = 0
  /// Faults in a row that the windows had nothing for.
  private var misses = 0

  /// Another stream gets the windows after so many.
  private static let missesUntilIdle = 16

  init(layer: SlotLayer, workers: Unpackers) throws(KernelError) {
    self.workers = workers
    let first = try ReadAheadWindow.create(layer: layer)
    do throws(KernelError) {
      windows = (first, try ReadAheadWindow.create(layer: layer))
    } catch {
      first.destroy()
      throw error
    }
  }

  /// Waits for workers that have a window.
  func destroy() {
    windows.0.destroy()
    windows.1.destroy()
  }

  /// Whether references to slots may be held.
  var isActive: Bool { !windows.0.isEmpty || !windows.1.isEmpty }

  /// The window that has the page, after a fault on it.
  @inline(__always)
  mutating func window(with page: UInt64, of token: UInt64) -> ReadAheadWindow? {
    misses += 1
    guard token == self.token else { return nil }
    let window = windows.0.holds(page) ? windows.0 : windows.1
    guard window.holds(page) else { return nil }
    misses = 0
    return window
  }

  /// Has unpacked what follows `end`, where a proven stream has got to. A stream that does not have the windows gets them when they are idle.
  mutating func follow(_ end: UInt64, of token: UInt64, _ table: PageTable) {
    if isActive && (token != self.token || !(leads(windows.0, end) || leads(windows.1, end))) {
      guard misses >= Self.missesUntilIdle else { return }
      clear()
    }
    self.token = token
    if windows.0.end <= end { windows.0.clear() }
    if windows.1.end <= end { windows.1.clear() }
    var start = max(end, windows.0.end, windows.1.end)
    if windows.0.isEmpty { start += UInt64(windows.0.post(from: start, table, to: workers)) }
    if windows.1.isEmpty { _ = windows.1.post(from: start, table, to: workers) }
  }

  /// Whether a window is part of the way of a stream that has got to `end`.
  private func leads(_ window: ReadAheadWindow, _ end: UInt64) -> Bool {
    !window.isEmpty && window.end >= end && window.end <= end + 4 * UInt64(ReadAheadWindow.pages)
  }

  /// Gives everything up that no worker has.
  func clear() {
    windows.0.clear()
    windows.1.clear()
  }
}
