import VSwapAPI

/// Rows of text in columns of equal width, two spaces apart.
struct TextTable {
  enum Alignment {
    case left, right
  }

  private let alignments: [Alignment]
  private var rows: [[String]]

  init(_ columns: [(title: String, alignment: Alignment)]) {
    alignments = columns.map(\.alignment)
    rows = [columns.map(\.title)]
  }

  /// Adds a row; it has as many cells as there are columns.
  mutating func add(_ cells: [String]) {
    precondition(cells.count == alignments.count)
    // Names come from the processes themselves; control characters would reach the terminal.
    rows.append(cells.map(EscapedText.line))
  }

  /// The lines, titles first, each with a newline.
  func render() -> String {
    let widths = alignments.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      let cells = alignments.indices.map { column in
        let padding = String(repeating: " ", count: widths[column] - row[column].count)
        return alignments[column] == .left ? row[column] + padding : padding + row[column]
      }
      return String(cells.joined(separator: "  ").reversed().drop { $0 == " " }.reversed()) + "\n"
    }.joined()
  }
}
