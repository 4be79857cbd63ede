import Glibc

/// Finds the program that a command names, as execvp(3) does.
public enum ProgramSearch {
  /// The file to execute for `command`: itself if it has a slash, else the first executable of that name in
  /// `searchPath`, whose directories are separated by colons (an empty one is the working directory).
  ///
  /// - Throws: ``LaunchRefusal`` with 127 when there is none, 126 when what there is cannot be executed.
  public static func find(_ command: String, searchPath: String?) throws(LaunchRefusal) -> String {
    if command.contains("/") {
      if let reason = obstacle(command) { throw refusal(command, reason) }
      return command
    }
    var firstReason: Int32?
    for directory in (searchPath ?? "/bin:/usr/bin").split(separator: ":", omittingEmptySubsequences: false)
    where !command.isEmpty {
      let candidate = directory.isEmpty ? command : "\(directory)/\(command)"
      guard let reason = obstacle(candidate) else { return candidate }
      if reason != ENOENT && reason != ENOTDIR { firstReason = firstReason ?? reason }
    }
    if let firstReason { throw refusal(command, firstReason) }
    throw LaunchRefusal(.notFound, "\(command): command not found")
  }

  /// errno of why the file at `path` cannot be executed, or nil if it can.
  private static func obstacle(_ path: String) -> Int32? {
    var file = stat()
    guard stat(path, &file) == 0 else { return errno }
    switch file.st_mode & S_IFMT {
    case S_IFDIR: return EISDIR
    case S_IFREG: return access(path, X_OK) == 0 ? nil : errno
    default: return EACCES
    }
  }

  private static func refusal(_ command: String, _ code: Int32) -> LaunchRefusal {
    switch code {
    case ENOENT, ENOTDIR:
      LaunchRefusal(.notFound, "\(command): command not found")
    case EACCES:
      LaunchRefusal(.notExecutable, "\(command): permission denied; make it executable (chmod +x)")
    default:
      LaunchRefusal(.notExecutable, "\(command): \(String(cString: strerror(code)).lowercased())")
    }
  }
}
