/// What holds a group's resident memory.
enum GroupLimit: Equatable, Sendable {
  case none
  /// At most so many pages; who wants more has to wait for eviction.
  case fixed(pages: Int)
  /// As few pages as the program does with; nobody ever waits for eviction.
  case auto

  /// The least that a limit may be, in bytes: below it programs crawl.
  static let leastBytes = 4 << 20

  /// So many bytes, or the least that a limit may be.
  static func fixed(bytes: Int) -> GroupLimit { .fixed(pages: max(leastBytes, bytes) / pageSize) }

  var isAuto: Bool { self == .auto }
  var fixedPages: Int? {
    if case .fixed(let pages) = self { return pages }
    return nil
  }
}
