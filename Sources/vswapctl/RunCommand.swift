import ArgumentParser
import CUserfault
import Glibc
import VSwapAPI

/// `vswapctl run`.
struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run",
    abstract: "Run a program and all its descendants as one group, under a memory limit.",
    usage:
      "vswapctl run [--limit SIZE|auto] [--pool-limit SIZE] [--swap PATH:SIZE[:PRIO][:discard]]... [--embedded] [--stats] -- CMD [ARG...]",
    discussion: """
      Uses the daemon that answers at the control socket, else starts one for as long as the program runs.

      Exit status: that of CMD, or 128+N if signal N killed it. 125 if run itself fails: a wrong option, \
      no daemon, or a program that cannot be attached because it is statically linked, 32-bit or \
      set-user-ID. 126 if CMD cannot be executed, 127 if it does not exist.
      """)

  @OptionGroup var connection: ConnectionOptions

  @Option(
    help: ArgumentHelp(
      "Most resident anonymous memory of the group, at least 4M; auto: as little as it does with. Default: none.",
      valueName: "size|auto"))
  var limit: String?

  @Option(
    help: ArgumentHelp(
      "Most memory of an embedded daemon's compressed pages, at least 1M.", valueName: "size"))
  var poolLimit: String?

  @Option(
    help: ArgumentHelp(
      "A swap area of an embedded daemon, made if it is missing; may be given several times.",
      valueName: "path:size[:prio][:discard]"))
  var swap: [String] = []

  @Flag(help: "Start a daemon for this program even if another one answers.")
  var embedded = false

  @Flag(help: "Sum up on stderr at the end.")
  var stats = false

  /// A word in front of `--`: there to be refused with a hint.
  @Argument(help: .hidden)
  var stray: String?

  @Argument(
    parsing: .postTerminator, help: ArgumentHelp("The program and its arguments, after --.", valueName: "cmd")
  )
  var command: [String] = []

  func validate() throws {
    _ = try limit.map { try LimitOption.parse($0, for: "--limit") }
    _ = try poolLimitBytes()
    _ = try swapAreas()
    if let word = stray { throw ValidationError("unexpected '\(word)': the program goes after --") }
    if command.isEmpty { throw ValidationError("no program given: it goes after --") }
  }

  func run() throws {
    vs_signals_save()  // before NIO ignores SIGPIPE
    let program = try ProgramSearch.find(command[0], searchPath: getenv("PATH").map { String(cString: $0) })
    let facts = PreloadCheck(user: getuid(), group: getgid(), noNewPrivileges: vs_no_new_privileges()) {
      vs_has_file_capabilities($0)
    }
    try facts.check(program)
    let library = try InstalledFile.library()
    let daemon = try RunDaemon(
      connection, embedded: embedded, poolLimitBytes: poolLimitBytes(), swapAreas: swapAreas())
    defer { daemon.release() }
    throw ExitCode(try execute(program, library, daemon))
  }

  private func execute(_ program: String, _ library: String, _ daemon: RunDaemon) throws -> Int32 {
    let changes = TargetEnvironment.changes(
      library: try PreloadLink.path(of: library, in: daemon.directory), socket: daemon.attachSocket,
      limit: try limit.map { try LimitOption.parse($0, for: "--limit") } ?? .none)
    vs_signals_hold()
    let process = try CommandProcess(program: program, argumentCount: command.count, changes: changes)
    let outsiders = stats ? Outsiders(of: process.process, library: library) : nil
    let status = process.wait(outsiders)
    if let outsiders {
      let summary = RunSummary(
        client: daemon.client, group: process.group, poolBefore: daemon.poolBefore, outsiders: outsiders.names)
      StandardError.writeLine(summary.line(afterEndOf: process.process))
    }
    return status
  }

  private func poolLimitBytes() throws -> Int? {
    do {
      return try poolLimit.map { try ByteSize.parse($0, minimum: ByteSize.minimumPoolLimit) }
    } catch {
      throw ValidationError("--pool-limit: \(error)")
    }
  }

  private func swapAreas() throws -> [SwapSpecification] {
    do {
      return try SwapSpecification.parse(swap)
    } catch {
      throw ValidationError("--swap: \(error)")
    }
  }
}
