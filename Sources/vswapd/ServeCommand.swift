import ArgumentParser
import FoundationEssentials
import Glibc
import VSwapAPI
import VSwapDaemon

/// `vswapd serve`.
struct ServeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Serve programs that attach, until SIGTERM.",
    discussion: """
      Sizes take K, M or G (powers of 1024). Exit status: 0 after SIGTERM or SIGINT, 1 if the daemon cannot \
      start, 64 for wrong options.
      """)

  @Option(
    help: ArgumentHelp(
      "Read settings from a JSON file (runtime_dir, pool_limit, swap, attach_group, attach_everyone, user_processes, user_swapped).",
      valueName: "file"))
  var config: String?

  @Option(
    help: ArgumentHelp(
      "Where the sockets go. Default: /run/vswapd for root, else $XDG_RUNTIME_DIR/vswapd.", valueName: "dir"))
  var runtimeDir: String?

  @Option(
    help: ArgumentHelp("Most memory that compressed pages may take, at least 1M.", valueName: "size"))
  var poolLimit: String?

  @Option(
    help: ArgumentHelp(
      "A swap area, made if it is missing; may be given several times, on top of those of the configuration file.",
      valueName: "path:size[:prio][:discard]"))
  var swap: [String] = []

  @Option(help: .hidden)
  var embeddedReadyFd: Int32?

  @Option(help: .hidden)
  var embeddedLifelineFd: Int32?

  func validate() throws {
    _ = try poolLimitBytes()
    _ = try swapAreas()
    if runtimeDir?.isEmpty == true { throw ValidationError("--runtime-dir: the path is empty") }
    guard (embeddedReadyFd == nil) == (embeddedLifelineFd == nil) else {
      throw ValidationError("--embedded-ready-fd and --embedded-lifeline-fd belong together")
    }
    for descriptor in [embeddedReadyFd, embeddedLifelineFd].compactMap(\.self)
    where fcntl(descriptor, F_GETFD) < 0 {
      throw ValidationError("\(descriptor) is no open file descriptor")
    }
  }

  func run() throws {
    let status: Int32
    do throws(StartupError) {
      status = try Daemon.run(try configuration())
    } catch {
      report(error)
      throw ExitCode.failure
    }
    throw ExitCode(status)
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

  private func configuration() throws(StartupError) -> ServiceConfiguration {
    let file = try config.map { path throws(StartupError) in try ConfigurationFile(path: path) }
    guard let directory = runtimeDir ?? file?.runtimeDirectory ?? Self.defaultDirectory() else {
      throw StartupError(message: "XDG_RUNTIME_DIR is not set; say where the sockets go with --runtime-dir")
    }
    var embedded: EmbeddedHandles?
    if let embeddedReadyFd, let embeddedLifelineFd {
      embedded = EmbeddedHandles(readyDescriptor: embeddedReadyFd, lifelineDescriptor: embeddedLifelineFd)
    }
    return ServiceConfiguration(
      runtimeDirectory: RuntimePaths.absolute(directory),
      poolLimitBytes: (try? poolLimitBytes()) ?? file?.poolLimitBytes,
      swapAreas: (file?.swapAreas ?? []) + ((try? swapAreas()) ?? []),
      attachGroup: file?.attachGroup, attachEveryone: file?.attachEveryone ?? false,
      userProcesses: file?.userProcesses, userSwappedBytes: file?.userSwappedBytes,
      embedded: embedded, notifySocket: ProcessInfo.processInfo.environment["NOTIFY_SOCKET"])
  }

  /// systemd names the service's directory in RUNTIME_DIRECTORY, whatever user the service runs as.
  private static func defaultDirectory() -> String? {
    let environment = ProcessInfo.processInfo.environment
    if let directory = environment["RUNTIME_DIRECTORY"]?.split(separator: ":").first {
      return String(directory)
    }
    return RuntimePaths.defaultDirectory(environment: environment, userIdentifier: geteuid())
  }

  /// To whoever waits: the terminal or the journal, or the vswapctl that started this daemon.
  private func report(_ error: StartupError) {
    guard let embeddedReadyFd else { return DaemonCommand.reportError(error.message) }
    DaemonCommand.writeLine(error.message, to: embeddedReadyFd)
  }
}
