import CUserfault
import FoundationEssentials
import Glibc
import VSwapAPI

/// A daemon for one command. It leaves by itself: when vswapctl has gone, however that came, and its last
/// target too.
final class EmbeddedDaemon {
  /// Holds its sockets, for this user alone. The daemon removes it.
  let directory: String
  private let process: pid_t
  /// Its other end tells the daemon that this process is there.
  private let lifeline: Int32

  /// How the names of such directories begin.
  static let directoryPrefix = "vswapd."
  /// How long it may take to get ready. It takes milliseconds.
  private static let startTime: Int32 = 30_000
  /// How long its end is waited for, so that nothing is left behind when vswapctl ends.
  private static let endTime: Int32 = 500
  /// Longest line it says, in bytes.
  private static let longestLine = 4096

  /// Starts a daemon and waits until it serves.
  ///
  /// - Throws: ``LaunchRefusal`` with the daemon's own reason, if it has one.
  init(poolLimitBytes: Int?, swapAreas: [SwapSpecification]) throws(LaunchRefusal) {
    let program = try InstalledFile.daemon()
    let ready = try Self.pipe()
    let line = try Self.pipe()
    directory = try Self.makeDirectory()
    lifeline = line.writing
    var options = poolLimitBytes.map { ["--pool-limit", "\($0)"] } ?? []
    for area in swapAreas { options += ["--swap", area.text] }
    process = Self.spawn(program, directory, options, ready.writing, line.reading)
    close(ready.writing)
    close(line.reading)
    defer { close(ready.reading) }
    let answer = process < 0 ? "" : Self.readLine(ready.reading)
    guard answer != "ready" else { return }
    let reason = abandon(answer)
    throw LaunchRefusal(.notAttachable, "the embedded daemon cannot start: \(reason)")
  }

  /// Lets the daemon go, and waits a moment for its end unless descendants of the command still need it.
  func release() {
    close(lifeline)
    if vs_wait_briefly(process, Self.endTime) == 1 { removeDirectory() }
  }

  /// Ends a daemon that did not get ready; returns why it did not.
  private func abandon(_ answer: String?) -> String {
    close(lifeline)
    defer { removeDirectory() }
    guard process > 0 else { return "\(String(cString: strerror(-process)))" }
    if vs_wait_briefly(process, Self.endTime) == 0 {
      kill(process, SIGKILL)
      _ = vs_wait_briefly(process, Self.startTime)
    }
    guard let answer else { return "it did not get ready in \(Self.startTime / 1000) s" }
    return answer.isEmpty ? "it ended without a word; try `vswapd serve`" : answer
  }

  private func removeDirectory() {
    try? FileManager.default.removeItem(atPath: directory)  // the daemon has removed it, unless it was killed
  }

  private static func pipe() throws(LaunchRefusal) -> (reading: Int32, writing: Int32) {
    var ends: [Int32] = [-1, -1]
    guard vs_pipe(&ends) == 0 else { throw systemRefusal("cannot make a pipe") }
    return (ends[0], ends[1])
  }

  private static func makeDirectory() throws(LaunchRefusal) -> String {
    let parent = parentDirectory()
    guard let template = strdup("\(parent)/\(directoryPrefix)XXXXXX") else { throw systemRefusal("no memory") }
    defer { free(template) }
    guard let made = mkdtemp(template) else { throw systemRefusal("cannot make a directory in \(parent)") }
    // What root starts may become another user, and must reach attach.sock then: it shows the pass of its group. control.sock stays root's, and
    // nobody else's program is served.
    if geteuid() == 0 { chmod(made, 0o711) }
    return String(cString: made)
  }

  private static func parentDirectory() -> String {
    let own = getenv("XDG_RUNTIME_DIR").map { String(cString: $0) }
    let longest = RuntimePaths.longestSocketPath - "/\(directoryPrefix)XXXXXX/control.sock".utf8.count
    let candidates = (geteuid() == 0 ? ["/run"] : []) + [own].compactMap(\.self)
    return candidates.first {
      $0.hasPrefix("/") && $0.utf8.count <= longest && PreloadLink.isReadable($0) && access($0, W_OK | X_OK) == 0
    }
      ?? "/tmp"
  }

  private static func spawn(
    _ program: String, _ directory: String, _ options: [String], _ ready: Int32, _ lifeline: Int32
  ) -> pid_t {
    var arguments = ["vswapd", "serve", "--runtime-dir", directory]
    arguments += ["--embedded-ready-fd", "\(ready)", "--embedded-lifeline-fd", "\(lifeline)"]
    let argumentList = CStringList(arguments + options)
    let changes = CStringList(TargetEnvironment.removal())
    return argumentList.withStart { arguments in
      changes.withStart { changes in
        program.withCString { path in
          var request = vs_program(path: path, argv: arguments, changes: changes)
          return vs_spawn_daemon(&request, ready, lifeline)
        }
      }
    }
  }

  /// The first line, without its end; empty if there is none, nil if there was none in time.
  private static func readLine(_ descriptor: Int32) -> String? {
    var line: [UInt8] = []
    var byte: UInt8 = 0
    while line.count < longestLine {
      var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      let count = poll(&wait, 1, startTime)
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { return nil }
      guard read(descriptor, &byte, 1) == 1, byte != UInt8(ascii: "\n") else { break }
      line.append(byte)
    }
    return String(decoding: line, as: UTF8.self)
  }

  /// Reads errno: call it first.
  private static func systemRefusal(_ what: String) -> LaunchRefusal {
    LaunchRefusal(.notAttachable, "\(what): \(String(cString: strerror(errno)))")
  }
}
