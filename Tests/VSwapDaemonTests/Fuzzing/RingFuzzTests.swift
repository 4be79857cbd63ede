import CUserfault
import CVSwapWire
import Glibc
import Testing

@testable import VSwapDaemon

/// What an agent can write and send: the whole ring, and the messages of the handshake.
@Suite("Fuzzing agents") struct RingFuzzTests {
  /// A link whose ring the test scribbles over, and the commands that were given.
  private final class Scribbled {
    private(set) var link: AgentLink
    let ring: OpaquePointer
    private let memory: UnsafeMutableRawPointer
    private let peer: Int32
    private let layer: SlotLayer
    private var allowed: [Range<UInt64>] = []
    private(set) var asked = 0

    init() throws {
      let mapping = try Mapping.create(name: "test-ring", length: Int(vswap_ring_size()), sealed: true)
      memory = mapping.base
      ring = vswap_ring_at(mapping.base)
      var ends: [Int32] = [0, 0]
      #expect(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
      peer = ends[1]
      layer = try SlotLayer.create(maximumSlots: 2048, cacheFrames: 1024, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 20)
      link = AgentLink(socket: ends[0], program: -1, ring: mapping, doorbell: vs_eventfd(), budget: layer.budget)
    }

    deinit {
      link.destroy()
      layer.destroy()
      close(peer)
    }

    func submit(_ random: inout SeededRandom) {
      guard let bank = link.idleBank() else { return }
      let runs = link.runs(of: bank)
      var pages = 0
      var count = 0
      while count < 1 + random.below(8) {
        let run = vswap_run(address: UInt64(random.below(1 << 20)) << 12, pages: UInt32(1 + random.below(16)), reserved: 0)
        runs[count] = run
        allowed.append(run.address / 4096..<run.address / 4096 + UInt64(run.pages))
        pages += Int(run.pages)
        count += 1
      }
      guard layer.budget.reserve(pages) else { return }
      asked += pages
      link.submit(bank: bank, runs: count, pages: pages, now: 0)
    }

    /// The words that control something, the records, or anything at all.
    func scribble(_ random: inout SeededRandom) {
      let bank = UInt32(random.below(Int(VSWAP_BANKS)))
      switch random.below(8) {
      case 0:
        vswap_play_count(ring, bank, random.below(3) == 0 ? UInt32(truncatingIfNeeded: random.next()) : UInt32(random.below(300)))
      case 1: vswap_play_finished(ring, bank, vswap_play_sequence(ring, bank) &+ UInt32(random.below(2)))
      case 2:
        let record = vswap_record(
          address: random.below(4) == 0 ? random.next() : UInt64(random.below(1 << 20)) << 12, pages: UInt32(random.below(20)),
          run: UInt32(random.below(10)))
        vswap_play_record(ring, bank, UInt32(random.below(256)), record)
      case 3:
        // As an honest agent does.
        let index = UInt32(random.below(4))
        if let range = allowed.last {
          vswap_play_record(ring, bank, index, vswap_record(address: range.lowerBound << 12, pages: 1, run: index))
          vswap_play_count(ring, bank, index + 1)
        }
      case 4:
        let request = vswap_request_of(ring)!
        request.pointee.kind = UInt32(truncatingIfNeeded: random.next())
        request.pointee.start = random.next() >> UInt64(random.below(64))
        request.pointee.end = random.next() >> UInt64(random.below(64))
        vswap_store(&request.pointee.state, UInt32(random.below(5)))
      default:
        // The frames behind the banks are content.
        let offset = random.below(Int(vswap_ring_size()) / 8 - Int(VSWAP_BANKS) * Int(VSWAP_BANK_PAGES) * 512) * 8
        memory.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
      }
    }

    /// Returns whether something was taken; nil: a violation, after which the session ends.
    func take() -> Bool? {
      var taken = false
      var pages = 0
      while true {
        switch link.nextEvicted() {
        case .none: return taken
        case .violation: return nil
        case .evicted(let run):
          taken = true
          pages += run.count
          let offset = run.content - UnsafeRawPointer(memory)
          #expect(offset >= 0 && offset + run.count * pageSize <= Int(vswap_ring_size()), "VSWAP_SEED=\(SeededRandom.seed)")
          #expect(
            allowed.contains { $0.contains(run.page) && run.page + UInt64(run.count) <= $0.upperBound },
            "VSWAP_SEED=\(SeededRandom.seed)")
          #expect(pages <= 2 * Int(VSWAP_BANK_PAGES), "VSWAP_SEED=\(SeededRandom.seed)")
        }
      }
    }

    func retire() {
      let before = asked
      var moved = 0
      for bank in 0..<AgentLink.bankCount { _ = link.retire(bank, moved: &moved, now: 0) }
      asked = link.outstandingPages
      #expect(moved <= before - asked && layer.budget.reserved == asked, "VSWAP_SEED=\(SeededRandom.seed)")
    }

    func answerRequests() {
      if let request = link.pendingRequest(), request.start > request.end { _ = request.kind }
      if link.finishRequest() { link.grantRequest() }
      link.abandonCommands(touching: 0, .max >> 12)
      link.publish(held: asked)
    }
  }

  @Test(.timeLimit(.minutes(20))) func recordsNeverLeadOutsideOfWhatWasAsked() throws {
    var random = SeededRandom(seed: Fuzz.seed(of: "ring"))
    var played = try Scribbled()
    var accepted = 0
    for _ in 0..<Fuzz.announce("ring") {
      played.submit(&random)
      for _ in 0..<1 + random.below(6) { played.scribble(&random) }
      guard let taken = played.take() else {
        played = try Scribbled()
        continue
      }
      accepted += taken ? 1 : 0
      played.retire()
      played.answerRequests()
    }
    #expect(accepted > 0)
  }

  @Test(.timeLimit(.minutes(20))) func textsOfMessagesArePrintable() {
    Fuzz.run("texts", corpus: [Array("redis-server-1".utf8), Array(repeating: 0x41, count: 64), [0], [0xC3, 0x28, 0xFF]]) {
      input in
      var hello = vswap_hello()
      withUnsafeMutableBytes(of: &hello) { $0.copyBytes(from: input.prefix($0.count)) }
      withUnsafeMutableBytes(of: &hello.group) { $0.copyBytes(from: input.suffix($0.count)) }
      for text in [Wire.text(hello.group), Wire.text(hello.name)] {
        #expect(text.utf8.allSatisfy { (32...126).contains($0) } && text.utf8.count <= 4 * 64, "VSWAP_SEED=\(SeededRandom.seed)")
      }
      var welcome = vswap_welcome()
      Wire.set(&welcome.text, to: String(decoding: input, as: UTF8.self))
      return Wire.text(welcome.text).utf8.count < 160
    }
  }
}
