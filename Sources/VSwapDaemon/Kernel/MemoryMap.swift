import CUserfault
import Glibc

/// One mapping of a target, as /proc/PID/maps or smaps shows it.
struct MappedRegion {
  /// Pages, half open.
  var start: UInt64 = 0
  var end: UInt64 = 0
  var readable = false
  var writable = false
  /// Private and without a file, and at addresses that can be served: what userfaultfd can serve and UFFDIO_MOVE can take. Stacks
  /// that grow down are not.
  var anonymous = false
  /// The main thread's stack, which grows down.
  var growsDown = false
  /// From smaps only: locked, wiped or dropped at fork, device memory, huge pages, shadow stack, a thread's stack.
  var excluded = false
  /// From smaps only: registered with some userfaultfd for missing pages.
  var tracksMissing = false
  /// From smaps only: VmFlags `nh`, which MAP_STACK sets since 6.7.
  var noHugePages = false

  var isNoAccess: Bool { !readable && !writable }
  var pages: UInt64 { end - start }
}

/// Reads the list of a target's mappings. Not for the fault path: it opens files and the buffer grows.
struct MemoryMap: ~Copyable {
  private let processID: Int32
  private let lookup: MappingLookup
  private var buffer: UnsafeMutableRawBufferPointer
  /// An open smaps that is being read piece by piece, or -1.
  private var walked: Int32 = -1
  /// The last mapping of the piece before.
  private var before = MappedRegion()
  /// Pages of the largest stack that a thread gets by default.
  private let stackPages: UInt64

  init(processID: Int32, lookup: MappingLookup = MappingLookup(descriptor: -1)) {
    self.processID = processID
    self.lookup = lookup
    stackPages = UInt64(vs_stack_limit(processID)) / UInt64(pageSize)
    buffer = .allocate(byteCount: 64 * 1024, alignment: 16)
  }

  deinit {
    if walked >= 0 { close(walked) }
    buffer.deallocate()
  }

  /// All mappings in address order, no page twice; a mapping with stacks in it (`stacks`) in parts. `withFlags` reads smaps, which walks the
  /// target's page tables: some 10 us per MiB. `pagemap`: of the process, where such stacks are to be found.
  mutating func regions(withFlags: Bool, pagemap: Int32 = -1) throws(KernelError) -> [MappedRegion] {
    let length = try readAll("/proc/\(processID)/\(withFlags ? "smaps" : "maps")")
    var result: [MappedRegion] = []
    parse(length, &result)
    if withFlags { excludeStacks(&result, above: MappedRegion(), pagemap: pagemap) }
    return result
  }

  private func parse(_ length: Int, _ result: inout [MappedRegion]) {
    var position = 0
    let bytes = UnsafeRawBufferPointer(rebasing: buffer[0..<length])
    while position < length {
      let lineEnd = bytes[position...].firstIndex(of: UInt8(ascii: "\n")) ?? length
      let line = UnsafeRawBufferPointer(rebasing: bytes[position..<lineEnd])
      position = lineEnd + 1
      if let region = Self.header(line) {
        Self.append(region, to: &result)
      } else if line.starts(with: "VmFlags:".utf8), !result.isEmpty {
        Self.apply(flags: line, to: &result[result.count - 1])
      }
    }
  }

  /// The first mapping that ends after the page; nil: there is none. One system call where the kernel answers such questions, the
  /// whole list where it does not.
  mutating func region(endingAfter page: UInt64) throws(KernelError) -> MappedRegion? {
    switch lookup.from(page) {
    case .mapping(let region): return region
    case .none: return nil
    case .unknown: return try regions(withFlags: false).first { $0.end > page }
    }
  }

  /// The mapping that holds the page.
  mutating func region(holding page: UInt64) throws(KernelError) -> MappedRegion? {
    guard let region = try region(endingAfter: page), region.start <= page else { return nil }
    return region
  }

  // MARK: - smaps in pieces

  var isWalking: Bool { walked >= 0 }

  /// Begins to read smaps from the start.
  mutating func beginWalk() throws(KernelError) {
    endWalk()
    walked = open("/proc/\(processID)/smaps", O_RDONLY | O_CLOEXEC)
    guard walked >= 0 else { throw .last("open") }
    before = MappedRegion()
  }

  mutating func endWalk() {
    if walked >= 0 { close(walked) }
    walked = -1
  }

  /// The next mappings, in address order, as they are now; at the end of the list the walk ends. Reads for `nanoseconds`, but a mapping at least. The kernel
  /// finds each read's first mapping by the end of the one before: a mapping that has grown or become one with others meanwhile is shown again.
  mutating func nextPiece(_ nanoseconds: UInt64, pagemap: Int32) throws(KernelError) -> [MappedRegion] {
    var result: [MappedRegion] = []
    let start = vs_monotonic_ns()
    repeat {
      // Whole mappings: what does not fit into the kernel's buffer comes with the next read.
      let count = read(walked, buffer.baseAddress!, buffer.count)
      if count < 0 && errno == EINTR { continue }
      guard count >= 0 else { throw .last("read") }
      if count == 0 {
        endWalk()
        break
      }
      parse(count, &result)
    } while vs_monotonic_ns() - start < nanoseconds
    excludeStacks(&result, above: before, pagemap: pagemap)
    if let last = result.last { before = last }
    return result
  }

  /// The kernel finds each line by the end of the one before. A mapping that has meanwhile become one with what follows it, by mremap or
  /// mprotect, is listed again, longer: what was said later is true, as the list is to have no page twice.
  static func append(_ region: MappedRegion, to list: inout [MappedRegion]) {
    while let last = list.last, last.start >= region.start { list.removeLast() }
    if let last = list.last, last.end > region.start { list[list.count - 1].end = region.start }
    list.append(region)
  }

  private mutating func readAll(_ path: String) throws(KernelError) -> Int {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw .last("open") }
    defer { close(descriptor) }
    var length = 0
    while true {
      if buffer.count - length < 8192 { grow(keeping: length) }
      let count = read(descriptor, buffer.baseAddress! + length, buffer.count - length)
      if count < 0 && errno == EINTR { continue }
      guard count >= 0 else { throw .last("read") }
      if count == 0 { return length }
      length += count
    }
  }

  private mutating func grow(keeping length: Int) {
    let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: buffer.count * 2, alignment: 16)
    larger.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[0..<length]))
    buffer.deallocate()
    buffer = larger
  }

  /// "7f12a000-7f12b000 rw-p 00000000 00:00 0      [heap]", or nil for the other lines of smaps.
  private static func header(_ line: UnsafeRawBufferPointer) -> MappedRegion? {
    var cursor = 0
    guard let start = hexadecimal(line, &cursor), cursor < line.count, line[cursor] == UInt8(ascii: "-") else {
      return nil
    }
    cursor += 1
    guard let end = hexadecimal(line, &cursor), cursor + 5 < line.count else { return nil }
    let modes = cursor + 1
    var region = MappedRegion(start: start / UInt64(pageSize), end: end / UInt64(pageSize))
    region.readable = line[modes] == UInt8(ascii: "r")
    region.writable = line[modes + 1] == UInt8(ascii: "w")
    region.growsDown = line.suffix(7).elementsEqual("[stack]".utf8)
    let isPrivate = line[modes + 3] == UInt8(ascii: "p")
    region.anonymous = isPrivate && region.end <= addressablePages && !hasFile(line, from: modes + 4)
    return region
  }

  /// Whether the inode is not 0, or the name is one of the kernel's own that are no plain anonymous memory.
  private static func hasFile(_ line: UnsafeRawBufferPointer, from: Int) -> Bool {
    var fields = 0
    var cursor = from
    while cursor < line.count && fields < 3 {
      while cursor < line.count && line[cursor] == UInt8(ascii: " ") { cursor += 1 }
      if fields < 2 { while cursor < line.count && line[cursor] != UInt8(ascii: " ") { cursor += 1 } }
      fields += 1
    }
    guard cursor < line.count, line[cursor] == UInt8(ascii: "0"),
      cursor + 1 == line.count || line[cursor + 1] == UInt8(ascii: " ")
    else { return true }
    cursor += 1
    while cursor < line.count && line[cursor] == UInt8(ascii: " ") { cursor += 1 }
    let name = UnsafeRawBufferPointer(rebasing: line[cursor...])
    return !(name.isEmpty || name.starts(with: "[heap]".utf8) || name.starts(with: "[anon:".utf8))
  }

  private static func hexadecimal(_ line: UnsafeRawBufferPointer, _ cursor: inout Int) -> UInt64? {
    let first = cursor
    var value: UInt64 = 0
    while cursor < line.count {
      switch line[cursor] {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt64(line[cursor] - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt64(line[cursor] - UInt8(ascii: "a") + 10)
      default: return cursor > first ? value : nil
      }
      cursor += 1
    }
    return cursor > first ? value : nil
  }

  /// The flags that forbid eviction: locked (lo), wiped (wf) or dropped (dc) at fork, device memory (io, pf), huge pages (ht),
  /// grows down (gd), shadow stack (ss).
  private static func apply(flags line: UnsafeRawBufferPointer, to region: inout MappedRegion) {
    var cursor = "VmFlags:".utf8.count
    while cursor + 2 < line.count {
      let flag = UInt16(line[cursor + 1]) << 8 | UInt16(line[cursor + 2])
      if flag == pair("n", "h") { region.noHugePages = true }
      if flag == pair("u", "m") { region.tracksMissing = true }
      for forbidden in forbiddenFlags where flag == forbidden { region.excluded = true }
      cursor += 3
    }
  }

  private static func pair(_ first: Unicode.Scalar, _ second: Unicode.Scalar) -> UInt16 {
    UInt16(UInt8(ascii: first)) << 8 | UInt16(UInt8(ascii: second))
  }

  private static let forbiddenFlags: [UInt16] = [
    pair("l", "o"), pair("w", "f"), pair("d", "c"), pair("i", "o"), pair("p", "f"), pair("h", "t"), pair("g", "d"),
    pair("s", "s"),
  ]

  /// A thread's stack that the preload library did not see made: MAP_STACK, right above a guard page. What is larger than a stack is by default
  /// is somebody's heap.
  private func excludeStacks(_ regions: inout [MappedRegion], above first: MappedRegion, pagemap: Int32) {
    var index = 0
    while index < regions.count {
      let region = regions[index]
      let below = index > 0 ? regions[index - 1] : first
      index += 1
      guard region.noHugePages && region.anonymous && region.writable else { continue }
      if below.isNoAccess && below.end == region.start && below.pages > 0 && below.pages <= 16 && region.pages <= stackPages {
        regions[index - 1].excluded = true
        continue
      }
      let parts = stacks(in: region, pagemap)
      guard !parts.isEmpty else { continue }
      regions.replaceSubrange(index - 1..<index, with: parts)
      index += parts.count - 1
    }
  }

  /// The same where the guard is a part of the mapping, made by madvise (MADV_GUARD_INSTALL, as glibc 2.42 does): stacks side by side are one
  /// mapping then. Its parts from guard to guard; none if there is no guard.
  private func stacks(in region: MappedRegion, _ pagemap: Int32) -> [MappedRegion] {
    var parts: [MappedRegion] = []
    var part = region
    var isAboveGuard = false
    func close(at end: UInt64) {
      part.end = end
      part.excluded = region.excluded || (isAboveGuard && part.pages <= stackPages)
      if part.pages > 0 { parts.append(part) }
      part.start = end
    }
    forEachGuard(of: region, pagemap) { guardPage in
      close(at: guardPage)
      isAboveGuard = true
    }
    if isAboveGuard { close(at: region.end) }
    return parts
  }

  private func forEachGuard(of region: MappedRegion, _ pagemap: Int32, _ body: (UInt64) -> Void) {
    guard pagemap >= 0 else { return }
    var cursor = region.start * UInt64(pageSize)
    let end = region.end * UInt64(pageSize)
    withUnsafeTemporaryAllocation(of: vs_page_region.self, capacity: 64) { runs in
      while cursor < end {
        var walked: UInt64 = 0
        let count = vs_guard_scan(pagemap, cursor, end, runs.baseAddress!, 64, &walked)
        guard count > 0 else { return }
        for index in 0..<Int(count) { body(runs[index].start / UInt64(pageSize)) }
        guard walked > cursor else { return }
        cursor = walked
      }
    }
  }
}
