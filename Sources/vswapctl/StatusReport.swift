import VSwapAPI

/// The daemon's status for people.
enum StatusReport {
  static func render(_ status: DaemonStatus) -> String {
    """
    vswapd \(status.version), process \(status.pid), up \(duration(status.uptimeSeconds))

    \(tiers(status))\(areas(status.areas))\(note(status.pool))
    \(groups(status.groups))
    \(targets(status.groups))\(notHeld(status.groups))
    """
  }

  /// Original to compressed as in "3.4:1"; nil where nothing was compressed.
  static func ratio(_ original: Int, _ compressed: Int) -> String? {
    guard compressed > 0 else { return nil }
    let tenths = whole((Double(original) / Double(compressed) * 10).rounded())
    return "\(tenths / 10).\(tenths % 10):1"
  }

  private static func tiers(_ status: DaemonStatus) -> String {
    var table = TextTable([
      ("TIER", .left), ("PAGES", .right), ("CONTENT", .right), ("MEMORY", .right), ("RATIO", .right),
      ("LIMIT", .right), ("STATE", .left),
    ])
    let (pool, cache, zero) = (status.pool, status.cache.pages, status.zero.pages)
    table.add([
      "pool", "\(pool.objects)", size(pool.originalBytes), size(pool.arenaBytes),
      ratio(pool.originalBytes, pool.compressedBytes) ?? "-", limit(pool.limitBytes), pool.state.rawValue,
    ])
    let cached = size(ByteSize.ofPages(cache))
    table.add(["cache", "\(cache)", cached, cached, "-", "-", ""])
    table.add(["zero", "\(zero)", size(ByteSize.ofPages(zero)), size(0), "-", "-", ""])
    table.add(["metadata", "-", "-", size(status.metadataBytes), "-", "-", ""])
    return table.render()
  }

  private static func areas(_ areas: [AreaStatus]) -> String {
    areas.isEmpty ? "" : "\n" + AreaReport.render(areas)
  }

  private static func note(_ pool: PoolStatus) -> String {
    guard pool.state == .full else { return "" }
    return "\nThe pool is full: nothing more can be evicted, and groups may exceed their limits.\n"
  }

  private static func groups(_ groups: [GroupStatus]) -> String {
    guard !groups.isEmpty else { return "No groups.\n" }
    var table = TextTable([
      ("GROUP", .left), ("LIMIT", .right), ("RESIDENT", .right), ("SWAPPED", .right), ("TARGETS", .right),
      ("STATE", .left),
    ])
    for group in groups {
      table.add([
        group.id, limit(of: group), size(group.residentBytes), size(ByteSize.ofPages(group.swappedPages)),
        "\(group.targets.count)", words(group.state.rawValue),
      ])
    }
    return table.render()
  }

  private static func targets(_ groups: [GroupStatus]) -> String {
    guard groups.contains(where: { !$0.targets.isEmpty }) else { return "No targets.\n" }
    var table = TextTable([
      ("PID", .right), ("NAME", .left), ("GROUP", .left), ("RESIDENT", .right), ("SWAPPED", .right),
      ("EVICTIONS", .right), ("FAULTS", .right), ("REFAULTS", .right), ("ZERO-FILLS", .right),
      ("STATE", .left),
    ])
    for group in groups {
      for target in group.targets {
        table.add([
          "\(target.pid)", target.name, group.id, size(target.residentBytes),
          size(ByteSize.ofPages(target.swappedPages)),
          "\(target.evictions)", "\(target.faults)", "\(target.refaults)", "\(target.zeroFills)",
          words(target.state),
        ])
      }
    }
    return table.render()
  }

  private static func notHeld(_ groups: [GroupStatus]) -> String {
    guard groups.contains(where: { !$0.notHeld.isEmpty }) else { return "" }
    var table = TextTable([("PID", .right), ("NAME", .left), ("GROUP", .left), ("NOT HELD BECAUSE", .left)])
    for group in groups {
      for process in group.notHeld { table.add(["\(process.pid)", process.name, group.id, reason(process.reason)]) }
    }
    return "\n" + table.render()
  }

  private static func reason(_ reason: ProcessNotHeld.Reason) -> String {
    switch reason {
    case .executed: "it executed a program that did not attach"
    case .detached: "it was detached"
    }
  }

  private static func size(_ bytes: Int) -> String {
    ByteSize.format(bytes)
  }

  private static func limit(_ bytes: Int) -> String {
    bytes == 0 ? "none" : size(bytes)
  }

  /// An automatic limit with where it is now.
  static func limit(of group: GroupStatus) -> String {
    group.limitMode == .auto ? "auto, \(size(group.limitBytes))" : limit(group.limitBytes)
  }

  private static func words(_ state: String) -> String {
    String(state.map { $0 == "_" ? " " : $0 })
  }

  /// For example "41 s", "2 min", "3 h 5 min", "12 d 3 h".
  private static func duration(_ seconds: Double) -> String {
    let total = Int(max(0, min(seconds, 1e12)))
    let (minutes, hours, days) = (total / 60, total / 3600, total / 86400)
    if minutes < 1 { return "\(total) s" }
    if hours < 1 { return "\(minutes) min" }
    if days < 1 { return "\(hours) h \(minutes % 60) min" }
    return "\(days) d \(hours % 24) h"
  }
}
