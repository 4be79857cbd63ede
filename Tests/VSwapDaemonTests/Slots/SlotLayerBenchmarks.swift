import Glibc
import Testing

@testable import VSwapDaemon

/// Prints what the slot layer's operations cost per page. Nothing is asserted; it runs only when asked for,
/// with VSWAP_BENCH=1, and means something only in release mode.
@Suite(.serialized, .enabled(if: getenv("VSWAP_BENCH") != nil)) struct SlotLayerBenchmarks {
  /// What real pages look like: machine code and data of this very program.
  @Test func binaryPages() throws { try measure("binary", from: "/proc/self/exe") }

  /// Pages of text: this source file, over and over, at changing offsets.
  @Test func textPages() throws { try measure("text", from: #filePath) }

  private func measure(_ name: String, from path: String) throws {
    let pages = 4096
    let content = UnsafeMutableRawPointer.allocate(byteCount: pages * pageSize, alignment: pageSize)
    defer { content.deallocate() }
    fill(content, pages * pageSize, from: path)
    let layer = try SlotLayer.create(
      maximumSlots: 1 << 20, cacheFrames: pages, poolReserveBytes: 1 << 30, poolLimitBytes: 1 << 30)
    let codec = try! Codec.create()
    let page = TestPage()
    defer {
      page.destroy()
      codec.destroy()
      layer.destroy()
    }
    var slots: [SlotNumber] = []
    slots.reserveCapacity(pages)
    for pass in 0..<2 {
      let store = time(pages) { index in
        let slot = layer.store(page: content + index * pageSize, target: 1, virtualPage: UInt64(index))
        slots.append(slot ?? 0)
      }
      let cached = time(pages) { _ = layer.load(slots[$0], into: page.bytes, codec: codec) }
      let compress = time(pages) { _ in _ = layer.compressOldest(codec: codec) }
      let pool = time(pages) { _ = layer.load(slots[$0], into: page.bytes, codec: codec) }
      let figures = layer.statistics()
      let release = time(pages) { layer.release(slots[$0]) }
      slots.removeAll(keepingCapacity: true)
      // The first pass touches the memory for the first time.
      print(
        "\(name), \(pass == 0 ? "fresh memory" : "warm"): store \(store) ns, load cached \(cached) ns,",
        "compress \(compress) ns, load pool \(pool) ns, release \(release) ns per page;",
        "\(figures.objects * pageSize) bytes -> \(figures.compressedBytes), arena \(figures.arenaBytes)")
    }
  }

  private func fill(_ content: UnsafeMutableRawPointer, _ length: Int, from path: String) {
    let file = open(path, O_RDONLY)
    defer { close(file) }
    var done = 0
    while done < length {
      let count = read(file, content + done, length - done)
      if count <= 0, lseek(file, off_t(done % 97), SEEK_SET) < 0 { return }
      done += max(0, count)
    }
  }

  private func time(_ count: Int, _ body: (Int) -> Void) -> Int {
    var (start, end) = (timespec(), timespec())
    clock_gettime(CLOCK_MONOTONIC, &start)
    for index in 0..<count { body(index) }
    clock_gettime(CLOCK_MONOTONIC, &end)
    return ((end.tv_sec - start.tv_sec) * 1_000_000_000 + end.tv_nsec - start.tv_nsec) / count
  }
}
