import CUserfault
import CVSwapWire
import Glibc
import Testing

@testable import VSwapDaemon

/// The daemon's end of the ring against an agent that is played here: well-behaved, and not.
@Suite struct AgentLinkTests {
  /// A link with a command of three runs (4 + 1 + 2 pages) out, and the ring as the agent sees it.
  final class Played {
    var link: AgentLink
    let ring: OpaquePointer
    let peer: Int32
    let layer: SlotLayer

    init() throws {
      layer = try SlotLayer.create(maximumSlots: 2048, cacheFrames: 1024, poolReserveBytes: 1 << 26, poolLimitBytes: 1 << 20)
      let mapping = try Mapping.create(name: "test-ring", length: Int(vswap_ring_size()), sealed: true)
      ring = vswap_ring_at(mapping.base)
      var ends: [Int32] = [0, 0]
      #expect(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
      peer = ends[1]
      link = AgentLink(
        socket: ends[0], program: vs_eventfd(), ring: mapping, doorbell: vs_eventfd(), budget: layer.budget)
      let runs = link.runs(of: 0)
      runs[0] = vswap_run(address: 0x10000, pages: 4, reserved: 0)
      runs[1] = vswap_run(address: 0x40000, pages: 1, reserved: 0)
      runs[2] = vswap_run(address: 0x50000, pages: 2, reserved: 0)
      #expect(layer.budget.reserve(7))
      link.submit(bank: 0, runs: 3, pages: 7, now: 1)
    }

    deinit {
      link.destroy()
      #expect(layer.budget.reserved == 0, "frames stay promised to nobody")
      layer.destroy()
      close(peer)
    }

    func publish(_ records: [vswap_record], count: UInt32? = nil) {
      for (index, record) in records.enumerated() { vswap_play_record(ring, 0, UInt32(index), record) }
      vswap_play_count(ring, 0, count ?? UInt32(records.count))
    }

    // The macros of the tests cannot call mutating methods.
    func enter() -> AgentLink.Entry { link.enter() }
    func bury(_ body: (vswap_run) -> Void) { link.bury(body) }
    func announceRegistration() -> Bool { link.announceRegistration() }
    func retire(_ moved: inout Int, now: UInt64 = 2) -> Bool {
      (0..<AgentLink.bankCount).reduce(false) { link.retire($1, moved: &moved, now: now) || $0 }
    }
    func takeBack() { link.takeBack() }
    var next: AgentLink.Next { link.nextEvicted() }

    func finish() { vswap_play_finished(ring, 0, vswap_play_sequence(ring, 0)) }
  }

  private func record(_ address: UInt64, _ pages: UInt32, _ run: UInt32) -> vswap_record {
    vswap_record(address: address, pages: pages, run: run)
  }

  private func violation(_ records: [vswap_record], count: UInt32? = nil) throws -> Bool {
    let played = try Played()
    played.publish(records, count: count)
    while true {
      switch played.link.nextEvicted() {
      case .evicted: continue
      case .none: return false
      case .violation: return true
      }
    }
  }

  @Test func recordsArriveInOrderWithTheirFrames() throws {
    let played = try Played()
    played.publish([record(0x10000, 2, 0), record(0x13000, 1, 0), record(0x50000, 2, 2)])
    var seen: [(UInt64, Int)] = []
    var first: UnsafeRawPointer?
    while case .evicted(let run) = played.link.nextEvicted() {
      first = first ?? run.content
      let before = seen.reduce(0) { $0 + $1.1 }
      #expect(run.content == first! + before * pageSize)
      seen.append((run.page, run.count))
    }
    #expect(seen.map(\.0) == [0x10, 0x13, 0x50])
    #expect(seen.map(\.1) == [2, 1, 2])
    var moved = 0
    #expect(!played.retire(&moved), "the agent has not finished")
    played.finish()
    #expect(played.retire(&moved) && played.layer.budget.reserved == 0)
    #expect(moved == 5)
    #expect(!played.link.isOutstanding)
  }

  @Test func aFinishedCommandWithUntakenRecordsIsNotRetired() throws {
    let played = try Played()
    played.publish([record(0x10000, 4, 0)])
    played.finish()
    var moved = 0
    #expect(!played.retire(&moved))
    guard case .evicted = played.link.nextEvicted() else {
      Issue.record("the record is lost")
      return
    }
    #expect(played.retire(&moved) && played.layer.budget.reserved == 0)
  }

  @Test func garbageIsAViolation() throws {
    #expect(try violation([record(0x10000, 1, 3)]), "a run that was not given")
    #expect(try violation([record(0x10000, 1, .max)]), "a run number out of any range")
    #expect(try violation([record(0x10000, 0, 0)]), "no pages")
    #expect(try violation([record(0x10000, 5, 0)]), "longer than its run")
    #expect(try violation([record(0x13000, 2, 0)]), "beyond the end of its run")
    #expect(try violation([record(0x0f000, 1, 0)]), "before its run")
    #expect(try violation([record(0x10001, 1, 0)]), "not on a page boundary")
    #expect(try violation([record(.max - 4095, 1, 0)]), "an address that wraps")
    #expect(try violation([record(0x10000, .max, 0)]), "a length that wraps")
    #expect(try violation([], count: 257), "more records than fit")
    #expect(try violation([], count: .max), "more records than anything")
    #expect(try violation([record(0x10000, 4, 0), record(0x10000, 4, 0)]), "more pages than were asked for")
  }

  @Test func randomGarbageNeverLeadsOutsideOfTheCommand() throws {
    let seed = SeededRandom.seed
    var random = SeededRandom(seed: seed)
    for _ in 0..<2000 {
      let played = try Played()
      let records = (0..<Int(random.next() % 8)).map { _ in
        record(
          (random.next() % 3 == 0 ? random.next() : 0x10000 + random.next() % 0x50) & ~0xfff,
          UInt32(truncatingIfNeeded: random.next() % 6), UInt32(truncatingIfNeeded: random.next() % 4))
      }
      played.publish(records)
      var pages = 0
      while case .evicted(let run) = played.link.nextEvicted() {
        pages += run.count
        let allowed = [0x10..<0x14, 0x40..<0x41, 0x50..<0x52] as [Range<UInt64>]
        #expect(allowed.contains { $0.contains(run.page) && run.page + UInt64(run.count) <= $0.upperBound }, "seed \(seed)")
      }
      #expect(pages <= 7)
    }
  }

  @Test func theGateIsTakenOnlyWhileACommandIsOut() throws {
    let played = try Played()
    #expect(played.enter() == .entered)
    #expect(vswap_load(vswap_gate(played.ring)) != 0)
    played.link.leave()
    #expect(vswap_load(vswap_gate(played.ring)) == 0)
    played.finish()
    var moved = 0
    #expect(played.retire(&moved) && played.layer.budget.reserved == 0)
    vswap_store(vswap_gate(played.ring), 1)
    #expect(played.enter() == .entered, "nothing is out, so the agent's gate does not matter")
    played.link.leave()
    #expect(vswap_load(vswap_gate(played.ring)) == 1)
  }

  @Test func anAgentThatDiedWithTheGateIsNoticed() throws {
    let played = try Played()
    vswap_store(vswap_gate(played.ring), 1)
    shutdown(played.peer, Int32(SHUT_RDWR))
    #expect(played.enter() == .dead)
    // The gate is ours, and what it may have been at is told.
    var runs: [UInt64] = []
    played.bury { runs.append($0.address) }
    #expect(played.layer.budget.reserved == 0)
    #expect(runs == [0x10000, 0x40000, 0x50000])
    #expect(!played.link.isOutstanding && played.link.idleBank() == nil)
    played.link.leave()
    #expect(vswap_load(vswap_gate(played.ring)) == 0)
  }

  /// An agent that is stopped, or lies: it is waited for once, and then not until it was there again.
  @Test func aGateThatIsKeptIsNotWaitedForForEver() throws {
    let played = try Played()
    vswap_store(vswap_gate(played.ring), 2)
    #expect(played.enter() == .kept && played.link.keptSince != 0)
    #expect(played.enter() == .kept)
    played.link.leave()
    #expect(vswap_load(vswap_gate(played.ring)) == 2, "it is the agent's still")
    vswap_store(vswap_gate(played.ring), 0)
    #expect(played.enter() == .entered && played.link.keptSince == 0)
    played.link.leave()
  }

  /// The command has ended, so nobody needs the gate, whoever has it still.
  @Test func aGateThatIsKeptDoesNotMatterWithoutACommand() throws {
    let played = try Played()
    vswap_store(vswap_gate(played.ring), 2)
    #expect(played.enter() == .kept)
    played.finish()
    var moved = 0
    #expect(played.retire(&moved) && played.link.keptSince == 0)
    #expect(played.enter() == .entered)
  }

  /// A program that is stopped keeps no frames from the others; what its agent had published before that is taken all the same.
  @Test func commandsOfASilentAgentAreTakenBack() throws {
    let played = try Played()
    #expect(!played.link.isSilent(100_000_000) && played.link.isSilent(300_000_000))
    played.publish([record(0x10000, 2, 0)])
    let generation = vswap_load(vswap_generation(played.ring))
    played.takeBack()
    #expect(vswap_load(vswap_generation(played.ring)) != generation && vswap_load(vswap_gate(played.ring)) == 0)
    #expect(played.layer.budget.reserved == 2 && played.link.isStalled && played.link.outstandingPages == 0)
    #expect(!played.link.isSilent(.max), "there is nothing left to take")
    guard case .evicted(let run) = played.next, run.count == 2, case .none = played.next else {
      Issue.record("the record that was there is lost")
      return
    }
    var moved = 0
    played.finish()
    #expect(played.retire(&moved) && moved == 2 && played.layer.budget.reserved == 0)
    #expect(played.link.mostPages == Int(VSWAP_PIECE_PAGES) && !played.link.isStalled)
    // It answers again: from the second command on it has as many frames as anybody.
    #expect(played.layer.budget.reserve(1))
    played.link.submit(bank: 0, runs: 1, pages: 1, now: 1_000_000_000)
    played.finish()
    #expect(played.retire(&moved, now: 1_002_000_000) && played.link.mostPages == AgentLink.bankPages)
  }

  /// With the gate in its hand it may have looked at the generation already: one piece can still come.
  @Test func anAgentThatHasTheGateMayEndItsPiece() throws {
    let played = try Played()
    played.link.runs(of: 1)[0] = vswap_run(address: 0x100000, pages: 100, reserved: 0)
    #expect(played.layer.budget.reserve(100))
    played.link.submit(bank: 1, runs: 1, pages: 100, now: 1)
    vswap_store(vswap_gate(played.ring), 1)
    played.takeBack()
    #expect(vswap_load(vswap_gate(played.ring)) == 1, "the gate is the agent's")
    #expect(played.layer.budget.reserved == 7 + Int(VSWAP_PIECE_PAGES))
    vswap_play_record(played.ring, 1, 0, record(0x100000, 16, 0))
    vswap_play_count(played.ring, 1, 1)
    guard case .evicted(let run) = played.next, run.count == 16 else {
      Issue.record("the piece is lost")
      return
    }
    vswap_play_record(played.ring, 1, 1, record(0x110000, 1, 0))
    vswap_play_count(played.ring, 1, 2)
    guard case .violation = played.next else {
      Issue.record("frames are promised to nobody, but a page arrives")
      return
    }
  }

  @Test func registrationAndCallersExcludeEachOther() throws {
    let played = try Played()
    _ = vswap_add(vswap_callers(played.ring), 1)
    #expect(!played.announceRegistration() && !played.announceRegistration())
    played.link.publish(registered: 0)
    #expect(vswap_load(vswap_registered(played.ring)) == 1, "nobody else is to pass meanwhile")
    _ = vswap_add(vswap_callers(played.ring), .max)
    #expect(played.announceRegistration())
    #expect(vswap_load(vswap_registered(played.ring)) == 1)
    played.link.publish(registered: 0)
    _ = vswap_add(vswap_callers(played.ring), 1)
    #expect(!played.announceRegistration(), "who came while nothing was registered did not ask")
  }
}
