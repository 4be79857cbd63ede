import VSwapAPI

/// The daemon's status as Prometheus reads it (text format 0.0.4). Counters have the names of /proc/vmstat
/// where they mean the same.
enum MetricsText {
  static func render(_ status: DaemonStatus) -> String {
    var text = ""
    gauge(
      &text, "build_info", "Always 1; the label is the release.", 1, labels: [("version", status.version)])
    gauge(&text, "uptime_seconds", "Seconds since the daemon started.", status.uptimeSeconds)
    pool(&text, status.pool)
    gauge(&text, "cache_pages", "Uncompressed pages in the swap cache.", status.cache.pages)
    gauge(&text, "zero_pages", "Swapped pages that hold only zeros.", status.zero.pages)
    gauge(&text, "metadata_bytes", "Memory that says where every page is.", status.metadataBytes)
    areas(&text, status.areas)
    groups(&text, status.groups)
    return text
  }

  private static func pool(_ text: inout String, _ pool: PoolStatus) {
    gauge(&text, "pool_objects", "Compressed pages in the pool.", pool.objects)
    gauge(&text, "pool_original_bytes", "Their size before compression.", pool.originalBytes)
    gauge(&text, "pool_compressed_bytes", "Their size after compression.", pool.compressedBytes)
    gauge(&text, "pool_arena_bytes", "Memory the pool occupies.", pool.arenaBytes)
    gauge(&text, "pool_limit_bytes", "Most memory the pool may occupy; 0 for no limit.", pool.limitBytes)
    gauge(&text, "clean_copies", "Resident pages whose compressed content is kept.", pool.cleanCopies)
    head(&text, "clean_evictions_total", .counter, "Pages swapped out unchanged, at no compression.")
    sample(&text, "clean_evictions_total", [], pool.reusedCopies)
    gauge(
      &text, "pool_full", "1 while the pool has no room and eviction stands still.",
      pool.state == .full ? 1 : 0)
  }

  private static func areas(_ text: inout String, _ areas: [AreaStatus]) {
    perArea(&text, "size_bytes", .gauge, "Size of the swap area.", areas) { $0.sizeBytes }
    perArea(&text, "used_bytes", .gauge, "Bytes of it that are in use.", areas) { $0.usedBytes }
    perArea(&text, "slots", .gauge, "Physical slots in use.", areas) { $0.slots }
    perArea(&text, "priority", .gauge, "Areas of higher priority are filled first.", areas) { $0.priority }
    perArea(&text, "active", .gauge, "1 while the area takes pages.", areas) { $0.state == "active" ? 1 : 0 }
    perArea(&text, "read_errors_total", .counter, "Slots that could not be read.", areas) { $0.readErrors }
    perArea(&text, "write_errors_total", .counter, "Writes that failed.", areas) { $0.writeErrors }
  }

  private static func groups(_ text: inout String, _ groups: [GroupStatus]) {
    perGroup(&text, "limit_bytes", .gauge, "Memory limit; 0 for none.", groups) { $0.limitBytes }
    perGroup(&text, "limit_auto", .gauge, "1 where the limit follows what the group needs.", groups) {
      $0.limitMode == .auto ? 1 : 0
    }
    perGroup(&text, "resident_bytes", .gauge, "Resident anonymous memory.", groups) { $0.residentBytes }
    perGroup(&text, "swapped_pages", .gauge, "Pages swapped out.", groups) { $0.swappedPages }
    perGroup(&text, "dictionary_bytes", .gauge, "Memory of the dictionary for its pages; 0 for none.", groups) {
      $0.dictionary?.bytes ?? 0
    }
    perGroup(&text, "targets", .gauge, "Processes in the group.", groups) { $0.targets.count }
    perGroup(&text, "targets_not_held", .gauge, "Processes whose memory no limit holds.", groups) { $0.notHeld.count }
    perGroup(&text, "over_limit", .gauge, "1 while the group exceeds its limit.", groups) {
      $0.state == .ok ? 0 : 1
    }
    perGroup(&text, "pswpout_total", .counter, "Pages swapped out.", groups) { $0.totals.evictions }
    perGroup(&text, "pswpin_total", .counter, "Pages swapped in.", groups) { $0.totals.faults }
    perGroup(
      &text, "workingset_refault_anon_total", .counter, "Pages swapped in from the swap cache.", groups
    ) {
      $0.totals.refaults
    }
    perGroup(&text, "pgfault_zero_total", .counter, "Pages filled with zeros.", groups) {
      $0.totals.zeroFills
    }
  }

  private enum Kind: String {
    case gauge, counter
  }

  private static func gauge(
    _ text: inout String, _ name: String, _ help: String, _ value: some CustomStringConvertible,
    labels: [(name: String, value: String)] = []
  ) {
    head(&text, name, .gauge, help)
    sample(&text, name, labels, value)
  }

  private static func perArea(
    _ text: inout String, _ suffix: String, _ kind: Kind, _ help: String, _ areas: [AreaStatus],
    _ value: (AreaStatus) -> Int
  ) {
    head(&text, "area_\(suffix)", kind, help)
    for area in areas { sample(&text, "area_\(suffix)", [("path", area.path)], value(area)) }
  }

  private static func perGroup(
    _ text: inout String, _ suffix: String, _ kind: Kind, _ help: String, _ groups: [GroupStatus],
    _ value: (GroupStatus) -> Int
  ) {
    let name = kind == .gauge ? "group_\(suffix)" : suffix
    head(&text, name, kind, help)
    for group in groups { sample(&text, name, [("group", group.id)], value(group)) }
  }

  private static func head(_ text: inout String, _ name: String, _ kind: Kind, _ help: String) {
    text += "# HELP vswap_\(name) \(help)\n# TYPE vswap_\(name) \(kind.rawValue)\n"
  }

  private static func sample(
    _ text: inout String, _ name: String, _ labels: [(name: String, value: String)],
    _ value: some CustomStringConvertible
  ) {
    let list = labels.map { "\($0.name)=\"\(escape($0.value))\"" }.joined(separator: ",")
    text += "vswap_\(name)\(list.isEmpty ? "" : "{\(list)}") \(value)\n"
  }

  private static func escape(_ value: String) -> String {
    value.reduce(into: "") { result, character in
      switch character {
      case "\\": result += "\\\\"
      case "\"": result += "\\\""
      case "\n": result += "\\n"
      default: result.append(character)
      }
    }
  }
}
