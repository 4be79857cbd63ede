import Glibc
import Testing

@testable import VSwapDaemon

/// What a file or device holds that is, or was, a swap area.
@Suite("Fuzzing areas") struct AreaFuzzTests {
  @Test(.timeLimit(.minutes(20))) func signaturesAreReadOrSomethingElse() throws {
    let file = memfd_create("test-area", 0)
    defer { close(file) }
    try AreaSignature(identity: 0x1234_5678_9ABC_DEF0, sizeBytes: 8 << 20).write(to: file)
    var head = [UInt8](repeating: 0, count: pageSize)
    #expect(pread(file, &head, pageSize, 0) == pageSize)
    var kernels = [UInt8](repeating: 0, count: pageSize)
    kernels.replaceSubrange(4086..<4096, with: "SWAPSPACE2".utf8)
    let accepted = try Fuzz.run(
      "signatures", corpus: [head, kernels, [UInt8](repeating: 0, count: pageSize)], tokens: ["VSWAPD-AREA-1\n"]
    ) { input in
      #expect(ftruncate(file, off_t(input.count)) == 0 && pwrite(file, input, input.count, 0) == input.count)
      guard case .signature(let signature) = try AreaSignature.content(of: file) else { return false }
      #expect(signature.sizeBytes >= 0, "VSWAP_SEED=\(SeededRandom.seed)")
      return true
    }
    #expect(accepted > 0)
  }

  /// Objects of a whole segment, changed at some places: none passes but what was written, and nothing outside of the segment is read.
  @Test(.timeLimit(.minutes(20))) func segmentsAreReadOrRefused() {
    var random = SeededRandom(seed: Fuzz.seed(of: "segments"))
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)
    defer { buffer.deallocate() }
    let stamp = AreaSegment.Stamp(identity: random.next(), segment: 3, generation: 7)
    var builder = AreaSegment.Builder(buffer: buffer, stamp: stamp)
    var content = [UInt8](repeating: 0, count: pageSize)
    while true {
      for index in stride(from: 0, to: pageSize, by: 8) { content[index] = UInt8(truncatingIfNeeded: random.next()) }
      guard builder.append(content, length: 1 + random.below(pageSize), slot: SlotNumber(1 + random.below(1 << 20))) != nil else {
        break
      }
    }
    builder.finish()
    let whole = [UInt8](UnsafeRawBufferPointer(start: buffer, count: AreaPlace.segmentBytes))
    for _ in 0..<Fuzz.announce("segments", part: 10) {
      var touched: [Int] = []
      for _ in 0..<1 + random.below(4) {
        let place = random.below(random.below(2) == 0 ? 2048 : AreaPlace.segmentBytes)
        buffer.storeBytes(of: UInt8(truncatingIfNeeded: random.next()), toByteOffset: place, as: UInt8.self)
        touched.append(place)
      }
      _ = AreaSegment.count(buffer, stamp)
      for _ in 0..<8 {
        let entry = AreaSegment.entry(
          buffer, random.below((AreaPlace.segmentBytes - AreaSegment.headerBytes) / AreaSegment.entryBytes))
        let unit = entry.unit % AreaPlace.unitsPerSegment
        let bytes = min(AreaPlace.segmentBytes - unit * AreaPlace.unit, AreaPlace.unit * (1 + random.below(70)))
        let found = AreaSegment.content(of: buffer + unit * AreaPlace.unit, bytes: bytes, slot: entry.slot, unit: unit, stamp)
        guard let found else { continue }
        let start = found.bytes - UnsafeRawPointer(buffer)
        #expect(start >= 0 && start + found.length <= AreaPlace.segmentBytes, "VSWAP_SEED=\(SeededRandom.seed)")
        let hashed = start - 8..<start + found.length
        #expect(
          touched.allSatisfy { !hashed.contains($0) || whole[$0] == (buffer + $0).load(as: UInt8.self) },
          "VSWAP_SEED=\(SeededRandom.seed)")
      }
      for place in touched { buffer.storeBytes(of: whole[place], toByteOffset: place, as: UInt8.self) }
    }
  }

  /// A reverse map with the right hash, and nonsense in it: whoever can write to the device can make one.
  @Test(.timeLimit(.minutes(20))) func forgedReverseMapsNameNobodyElsesSlots() throws {
    let bench = try SwapoffBench()
    defer { bench.destroy() }
    let area = try bench.add()
    _ = try bench.fillPool(pages: 40)
    var random = SeededRandom(seed: Fuzz.seed(of: "reverse maps"))
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: AreaPlace.segmentBytes, alignment: pageSize)
    defer { buffer.deallocate() }
    let stamp = bench.layer.stamp(area, 1)
    for _ in 0..<Fuzz.announce("reverse maps", part: 10) {
      var builder = AreaSegment.Builder(buffer: buffer, stamp: stamp)
      for _ in 0..<1 + random.below(6) {
        let slot = [0, 1, SlotNumber(random.below(64)), 1 << 27, 1 << 31, .max, SlotNumber(truncatingIfNeeded: random.next())][
          random.below(7)]
        _ = builder.append(buffer, length: 1 + random.below(600), slot: slot)
      }
      builder.finish()
      SegmentScan.visitLive(bench.layer, area: area, segment: 1, buffer: buffer) { slot, _, _ in
        Issue.record("slot \(slot) does not lie there, VSWAP_SEED=\(SeededRandom.seed)")
        bench.layer.release(slot)
      }
    }
  }
}
