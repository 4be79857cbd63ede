import VSwapAPI

/// Swap areas for people, in the columns of swapon(8).
enum AreaReport {
  /// Empty without areas, as with swapon(8).
  static func render(_ areas: [AreaStatus]) -> String {
    guard !areas.isEmpty else { return "" }
    var table = TextTable([
      ("NAME", .left), ("TYPE", .left), ("SIZE", .right), ("USED", .right), ("PRIO", .right), ("STATE", .left),
    ])
    for area in areas {
      table.add([
        EscapedText.shown(path: area.path), area.type.rawValue, ByteSize.format(area.sizeBytes), ByteSize.format(area.usedBytes),
        "\(area.priority)", state(area),
      ])
    }
    return table.render()
  }

  private static func state(_ area: AreaStatus) -> String {
    var words = [area.state == "no_space" ? "no space" : area.state]
    if area.discard { words.append("discard") }
    if !area.direct { words.append("through the page cache") }
    if area.readErrors > 0 { words.append("read errors: \(area.readErrors)") }
    if area.writeErrors > 0 { words.append("write errors: \(area.writeErrors)") }
    return words.joined(separator: ", ")
  }
}
