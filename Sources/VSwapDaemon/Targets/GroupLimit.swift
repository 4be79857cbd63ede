/// What holds a group's resident memory.
enum GroupLimit: Equatable, Sendable {
  case none
  /// At most so many pages; who wants more has to wait for eviction.
  case fixed(pages: Int)
  /// As few pages as the program does with; nobody ever waits for eviction.
  case auto

  var isAuto: Bool { self == .auto }
  var fixedPages: Int? {
    if case .fixed(let pages) = self { return pages }
    return nil
  }
}
