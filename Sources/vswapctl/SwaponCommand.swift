import ArgumentParser
import VSwapAPI

/// `vswapctl swapon`.
struct SwaponCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "swapon",
    abstract: "Give the daemon a file or block device to swap to, or show what it has.",
    usage: """
      vswapctl swapon PATH [--size SIZE] [--priority N] [--discard]
      vswapctl swapon --show [--json]
      """,
    discussion: """
      A file that does not exist is made, and removed when it is retired. What is there is taken if vswapd \
      left it there, or if it is a block device that begins with zeros.
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: ArgumentHelp("A file or a block device.", valueName: "path"))
  var path: String?

  @Option(help: "How large, at least 2M. Default: all of what is there.")
  var size: String?

  @Option(
    help: ArgumentHelp(
      "0 to 32767; areas of higher priority are filled first. Default: below all others.", valueName: "n"))
  var priority: Int?

  @Flag(
    help: ArgumentHelp(
      "Give what is free of it back to the file system or the device. Default: it keeps all that it has, so that a write never lacks room."
    ))
  var discard = false

  @Flag(help: "Show the areas.")
  var show = false

  @Flag(help: "With --show: print what the daemon says, as one line of JSON.")
  var json = false

  func validate() throws {
    _ = try bytes()
    if let priority, !SwapSpecification.priorities.contains(priority) {
      throw ValidationError("--priority: it is \(SwapSpecification.priorityRule)")
    }
    if path?.isEmpty == true { throw ValidationError("the path is empty") }
    guard (path == nil) == show else { throw ValidationError("give either a path or --show") }
    if json && !show { throw ValidationError("--json goes with --show") }
    if show && (size != nil || priority != nil || discard) {
      throw ValidationError("--size, --priority and --discard go with a path")
    }
  }

  func run() throws {
    let client = try connection.client()
    do {
      if let path { return try add(RuntimePaths.absolute(path), client) }
      if json { return try StandardOutput.write(Array(client.areasText().readableBytesView)) }
      try StandardOutput.write(AreaReport.render(client.areas()))
    } catch let failure as ControlClient.Failure {
      throw client.explain(failure)
    }
  }

  private func add(_ path: String, _ client: ControlClient) throws {
    let area = try client.swapon(SwaponRequest(path: path, sizeBytes: try bytes(), priority: priority, discards: discard))
    try StandardOutput.write(
      "\(EscapedText.shown(path: area.path)): \(ByteSize.format(area.sizeBytes)), priority \(area.priority)\n")
    if !area.direct {
      StandardError.writeLine(
        "vswapctl: \(area.path): its file system has no direct I/O; the area works through the page cache")
    }
  }

  private func bytes() throws -> Int? {
    do {
      return try size.map { try ByteSize.parse($0, minimum: ByteSize.minimumArea) }
    } catch {
      throw ValidationError("--size: \(error)")
    }
  }
}
