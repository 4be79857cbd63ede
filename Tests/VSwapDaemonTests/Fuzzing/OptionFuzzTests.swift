import Glibc
import Testing
import VSwapAPI

@testable import VSwapDaemon

/// Sizes, areas and programs, as users name them.
@Suite("Fuzzing sizes and options") struct OptionFuzzTests {
  @Test(.timeLimit(.minutes(20))) func sizesAreNumbersOfBytesOrRefused() {
    let accepted = Fuzz.runText(
      "sizes", corpus: ["64M", "262144", "2G", "1k", "8589934591G"], tokens: ["K", "M", "G", "T", "-", " ", "٣", "é"]
    ) { input in
      for minimum in [0, ByteSize.minimumLimit, ByteSize.minimumArea] {
        do {
          let bytes = try ByteSize.parse(input, minimum: minimum)
          #expect(bytes >= minimum && !ByteSize.format(bytes).isEmpty, "VSWAP_SEED=\(SeededRandom.seed) '\(input)'")
        } catch {
          #expect(!"\(error)".isEmpty)
          if minimum == 0 { return false }
        }
      }
      return true
    }
    #expect(accepted > 0)
  }

  @Test(.timeLimit(.minutes(20))) func everyNumberOfBytesCanBeShown() {
    var random = SeededRandom(seed: Fuzz.seed(of: "formats"))
    for _ in 0..<Fuzz.announce("formats") {
      let bytes = Int(truncatingIfNeeded: random.next() >> UInt64(random.below(64)))
      #expect(
        ByteSize.format(bytes).last == "B" && ByteSize.format(-1 - bytes).last == "B", "VSWAP_SEED=\(SeededRandom.seed) \(bytes)")
    }
    // Ten times that is a little less than 2^64.
    #expect(ByteSize.format(1_844_674_407_370_955_161) == "1.6 EiB")
    #expect(!ByteSize.format(.min).isEmpty)
  }

  @Test(.timeLimit(.minutes(20))) func swapSpecificationsAreReadAsTheyAreWritten() {
    let accepted = Fuzz.runText(
      "swap specifications", corpus: ["/var/swap0:8G", "/dev/sdx:2097152:5", "/a:b:64M:32767", "/x:2M:2097151"],
      tokens: [":", "K", "M", "G", "/", "\u{0}"]
    ) { input in
      guard let area = try? SwapSpecification(parsing: input) else { return false }
      #expect(!area.path.isEmpty && area.sizeBytes! >= ByteSize.minimumArea, "VSWAP_SEED=\(SeededRandom.seed) '\(input)'")
      #expect(
        area.priority.map { SwapSpecification.priorities.contains($0) } ?? true, "VSWAP_SEED=\(SeededRandom.seed) '\(input)'")
      #expect((try? SwapSpecification(parsing: area.text)) == area, "VSWAP_SEED=\(SeededRandom.seed) '\(input)'")
      return true
    }
    #expect(accepted > 0)
  }

  @Test(.timeLimit(.minutes(20))) func programsAreToldApartOrDamaged() throws {
    let directory = try ScratchDirectory()
    let path = try directory.file("program", [])
    let file = open(path, O_RDWR | O_CLOEXEC)
    defer { close(file) }
    func write(_ bytes: [UInt8]) { _ = ftruncate(file, 0) == 0 && pwrite(file, bytes, bytes.count, 0) == bytes.count }
    let accepted = try Fuzz.run(
      "programs", corpus: [Self.dynamicProgram(), Array("#!/bin/sh -e\n".utf8), Array("#! \t/x y\n".utf8)], part: 4
    ) { input in
      write(input)
      return switch try ProgramImage.read(path) {
      case .dynamicallyLinked, .staticallyLinked, .script: true
      case .foreign, .damaged, .unknown: false
      }
    }
    #expect(accepted > 0)
  }

  /// The head of this very program, with its table of segments and its loader's name.
  private static func dynamicProgram() throws -> [UInt8] {
    let file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
    defer { close(file) }
    return [UInt8](unsafeUninitializedCapacity: 2048) { buffer, filled in
      filled = max(0, Glibc.read(file, buffer.baseAddress, 2048))
    }
  }
}
