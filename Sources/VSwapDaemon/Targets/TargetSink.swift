import CUserfault
import Glibc

/// Where swapoff brings pages to: targets with an agent, by their pagers.
final class TargetSink: PageSink, @unchecked Sendable {
  private let registry: TargetRegistry

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

  func deliver(_ batch: PageBatch) {
    guard let pager = registry.target(id: batch.target)?.pager, !pager.bringInHere(batch) else { return }
    let promise = Promise<Bool>()
    guard pager.post(.bringIn(batch, promise)) else { return }
    // The batch is the pager's until it says so.
    _ = promise.wait()
  }

  func deliverToAll(_ batch: PageBatch) {
    for pager in registry.pagers() {
      let promise = Promise<Bool>()
      guard pager.post(.bringIn(batch, promise)) else { continue }
      _ = promise.wait()
    }
  }

  func dropCopies() { askAll { .dropCopies($0) } }

  func filesChanged() { askAll { .refreshFiles($0) } }

  private func askAll(_ request: (Promise<Bool>) -> Pager.Request) {
    var promises: [Promise<Bool>] = []
    for pager in registry.pagers() {
      let promise = Promise<Bool>()
      if pager.post(request(promise)) { promises.append(promise) }
    }
    for promise in promises { _ = promise.wait(milliseconds: 1000) }
  }
}
