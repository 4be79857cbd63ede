import Glibc
import NIOCore
import VSwapAPI

/// The embedded daemons of this user: each has its sockets in a directory of its own.
enum EmbeddedDaemons {
  struct Found {
    let socketPath: String
    /// nil: it does not answer, since it is stopped or very busy.
    let status: DaemonStatus?

    /// Whether it serves the process or is it, or serves a program or group of that name.
    fileprivate func serves(_ name: String) -> Bool {
      guard let status else { return false }
      if let pid = Int32(name) {
        return status.pid == pid || EmbeddedDaemons.parent(of: status.pid) == pid
          || status.groups.contains { $0.id.hasSuffix("-\(pid)") || $0.targets.contains { $0.pid == pid } }
      }
      return status.groups.contains { group in
        group.id == name || EmbeddedDaemons.stem(group.id) == name || group.targets.contains { $0.name == name }
      }
    }
  }

  /// How long each may take to answer. Others wait for it.
  private static let answerTime = TimeAmount.seconds(2)

  /// Those that are there now, by socket.
  static func list() -> [Found] {
    directories().compactMap { ask(RuntimePaths.controlSocket(in: $0)) }
  }

  private static func ask(_ socketPath: String) -> Found? {
    do throws(ControlClient.Failure) {
      return Found(socketPath: socketPath, status: try ControlClient(socketPath: socketPath).status(within: answerTime))
    } catch {
      guard case .silent = error else { return nil }  // it comes or goes just now
      return Found(socketPath: socketPath, status: nil)
    }
  }

  /// The control socket of the one that `name` is about.
  static func socket(of name: String) throws(CommandFailure) -> String {
    let matches = list().filter { $0.serves(name) }
    guard let first = matches.first else {
      throw CommandFailure(message: "no embedded daemon of this user serves '\(name)'; `vswapctl status` lists them")
    }
    guard matches.count == 1 else {
      let numbers = matches.compactMap(\.status?.pid).map(String.init).joined(separator: ", ")
      throw CommandFailure(message: "several embedded daemons serve '\(name)'; give a process id: \(numbers)")
    }
    return first.socketPath
  }

  /// For people: a line for each group.
  static func report(_ daemons: [Found]) -> String {
    var table = TextTable([
      ("DAEMON", .right), ("PID", .right), ("COMMAND", .left), ("GROUP", .left), ("SWAPPED", .right), ("SOCKET", .left),
    ])
    for daemon in daemons {
      guard let status = daemon.status else {
        table.add(["-", "-", "does not answer", "-", "-", daemon.socketPath])
        continue
      }
      for group in status.groups {
        // The command itself, if it is still there.
        let target = group.targets.first { group.id.hasSuffix("-\($0.pid)") } ?? group.targets.first
        table.add([
          "\(status.pid)", target.map { "\($0.pid)" } ?? "-", target?.name ?? "-", group.id,
          ByteSize.format(group.swappedPages * pageSize), daemon.socketPath,
        ])
      }
      if status.groups.isEmpty { table.add(["\(status.pid)", "-", "-", "-", "-", daemon.socketPath]) }
    }
    return table.render()
  }

  private static let pageSize = 4096

  /// Directories as ``EmbeddedDaemon`` makes them. Others' are left alone: nobody's socket is trusted because of
  /// its name.
  private static func directories() -> [String] {
    let own = getenv("XDG_RUNTIME_DIR").map { String(cString: $0) }
    let parents = Set(["/run", "/run/user/\(geteuid())", "/tmp"] + [own].compactMap(\.self))
    return parents.flatMap { parent in
      names(in: parent).filter { $0.hasPrefix(EmbeddedDaemon.directoryPrefix) }.map { "\(parent)/\($0)" }
    }.filter { path in
      var facts = stat()
      return lstat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFDIR && facts.st_uid == geteuid()
    }.sorted()
  }

  private static func names(in directory: String) -> [String] {
    guard let entries = opendir(directory) else { return [] }
    defer { closedir(entries) }
    var result: [String] = []
    while let entry = readdir(entries) {
      result.append(
        withUnsafePointer(to: &entry.pointee.d_name) {
          $0.withMemoryRebound(to: CChar.self, capacity: Int(NAME_MAX) + 1) { String(cString: $0) }
        })
    }
    return result
  }

  /// The name of a group without the number at its end.
  private static func stem(_ group: String) -> Substring {
    group.lastIndex(of: "-").map { group[..<$0] } ?? group[...]
  }

  /// The `vswapctl run` that started a daemon, as long as it is there.
  private static func parent(of process: Int32) -> Int32? {
    ProcessFacts(process)?.parent
  }
}
