import CUserfault
import Glibc

/// Where swapoff brings pages to: targets with an agent, by their pagers.
///
/// A pager may be kept by its target: everything here waits for it for a limited time. A batch that was given to one that does not answer
/// stays its own; what it brings in from it afterwards is right, since it compares the page table's entry and the slot's word first.
final class TargetSink: PageSink, @unchecked Sendable {
  private let registry: TargetRegistry

  /// How long a pager is waited for, in milliseconds. One round of its loop takes less unless it waits for its target.
  private static let patience = 1000

  init(registry: TargetRegistry) { self.registry = registry }

  func room(target: UInt32) -> Int {
    guard let account = registry.target(id: target)?.group.account else { return 0 }
    return Self.room(account)
  }

  /// Up to where reclaim would begin.
  private static func room(_ account: GroupAccount) -> Int {
    account.limit == nil ? account.swapped : max(0, account.high - account.resident)
  }

  func totalRoom() -> Int {
    let groups = registry.snapshot().reduce(0) { $0 + min(Self.room($1.group.account), $1.group.account.swapped) }
    return min(groups, Int(vs_available_pages()) / 8 * 7)
  }

  func deliver(_ batch: PageBatch) -> Bool {
    guard let pager = registry.target(id: batch.target)?.pager else { return true }
    switch pager.bringInHere(batch) {
    case .done, .refused: return true
    case .eventFirst: return give(batch, to: pager)
    }
  }

  func deliverToAll(_ batch: PageBatch) -> Bool {
    for pager in registry.pagers() where !give(batch, to: pager) { return false }
    return true
  }

  /// Has the pager bring the batch in. false: it did not answer, and may do so still.
  private func give(_ batch: PageBatch, to pager: Pager) -> Bool {
    let promise = Promise<Bool>()
    guard pager.isAnswering, pager.post(.bringIn(batch, promise)) else { return true }
    return pager.answer(promise, within: Self.patience) != nil || promise.giveUp() != nil
  }

  func dropCopies() { askAll { .dropCopies($0) } }

  func filesChanged() { askAll { .refreshFiles($0) } }

  /// One limit for all of them.
  private func askAll(_ request: (Promise<Bool>) -> Pager.Request) {
    var asked: [(pager: Pager, promise: Promise<Bool>)] = []
    for pager in registry.pagers() {
      let promise = Promise<Bool>()
      if pager.post(request(promise)) { asked.append((pager, promise)) }
    }
    let deadline = vs_monotonic_ns() + UInt64(Self.patience) * 1_000_000
    for (pager, promise) in asked {
      let now = vs_monotonic_ns()
      let left = now < deadline ? Int((deadline - now) / 1_000_000) : 0
      if pager.answer(promise, within: left) == nil { _ = promise.giveUp() }
    }
  }
}
