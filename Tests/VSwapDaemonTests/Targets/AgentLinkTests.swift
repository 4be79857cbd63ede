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

    init() throws {
      let mapping = try Mapping.create(name: "test-ring", length: Int(vswap_ring_size()), sealed: true)
      ring = vswap_ring_at(mapping.base)
      var ends: [Int32] = [0, 0]
      #expect(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
      peer = ends[1]
      link = AgentLink(socket: ends[0], program: vs_eventfd(), ring: mapping, doorbell: vs_eventfd())
      let runs = link.runs(of: 0)
      runs[0] = vswap_run(address: 0x10000, pages: 4, reserved: 0)
      runs[1] = vswap_run(address: 0x40000, pages: 1, reserved: 0)
      runs[2] = vswap_run(address: 0x50000, pages: 2, reserved: 0)
      link.submit(bank: 0, runs: 3, pages: 7)
    }

    deinit {
      link.destroy()
      close(peer)
    }

    func publish(_ records: [vswap_record], count: UInt32? = nil) {
      for (index, record) in records.enumerated() { vswap_play_record(ring, 0, UInt32(index), record) }
      vswap_play_count(ring, 0, count ?? UInt32(records.count))
    }

    // The macros of the tests cannot call mutating methods.
    func enter() -> AgentLink.Entry { link.enter() }
    func bury(_ body: (vswap_run) -> Void) -> Int { link.bury(body) }
    func announceRegistration() -> Bool { link.announceRegistration() }
    func retire(_ moved: inout Int) -> Int { link.retire(moved: &moved) }

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
    #expect(played.retire(&moved) == 0, "the agent has not finished")
    played.finish()
    #expect(played.retire(&moved) == 7)
    #expect(moved == 5)
    #expect(!played.link.isOutstanding)
  }

  @Test func aFinishedCommandWithUntakenRecordsIsNotRetired() throws {
    let played = try Played()
    played.publish([record(0x10000, 4, 0)])
    played.finish()
    var moved = 0
    #expect(played.retire(&moved) == 0)
    guard case .evicted = played.link.nextEvicted() else {
      Issue.record("the record is lost")
      return
    }
    #expect(played.retire(&moved) == 7)
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
    #expect(played.retire(&moved) == 7)
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
    #expect(played.bury { runs.append($0.address) } == 7)
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
    #expect(played.retire(&moved) == 7 && played.link.keptSince == 0)
    #expect(played.enter() == .entered)
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
