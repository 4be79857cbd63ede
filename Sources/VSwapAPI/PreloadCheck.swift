import Glibc

/// Finds out before a program is started whether libvswap.so would be loaded into it: the dynamic loader
/// skips LD_PRELOAD silently where it does not apply, and the program would run without its limit.
public struct PreloadCheck: Sendable {
  /// Real ids of the user who starts the program.
  public var user: UInt32
  public var group: UInt32
  /// PR_SET_NO_NEW_PRIVS: set-id bits have no effect.
  public var noNewPrivileges: Bool
  /// Whether the file at a path has capabilities.
  public var hasCapabilities: @Sendable (String) -> Bool

  public init(
    user: UInt32, group: UInt32, noNewPrivileges: Bool, hasCapabilities: @escaping @Sendable (String) -> Bool
  ) {
    self.user = user
    self.group = group
    self.noNewPrivileges = noNewPrivileges
    self.hasCapabilities = hasCapabilities
  }

  /// Follows the `#!` lines from `path` to the program that the kernel will start.
  ///
  /// - Throws: ``LaunchRefusal`` with status 125 when nothing can be preloaded into it, with 126 when it
  ///   cannot run.
  public func check(_ path: String) throws(LaunchRefusal) {
    var program = path
    for _ in 0..<Self.deepestScript {
      switch try image(program) {
      case .script(let interpreter):
        guard access(interpreter, F_OK) == 0 else {
          throw LaunchRefusal(.notExecutable, "\(program): its interpreter \(interpreter) does not exist")
        }
        program = interpreter
      case .unknown where program == path:
        program = Self.shell
      case .unknown, .damaged:
        throw LaunchRefusal(.notExecutable, "\(program): not a program that this machine can run")
      case .staticallyLinked:
        throw LaunchRefusal(
          .notAttachable,
          "\(program) is statically linked, so nothing can be preloaded; use a dynamically linked one"
        )
      case .foreign(let kind):
        throw LaunchRefusal(
          .notAttachable,
          "\(program) is \(kind), which libvswap.so cannot be loaded into; use one built for this machine")
      case .dynamicallyLinked(let loader):
        try checkLoader(loader, of: program)
        return try checkPrivileges(of: program)
      }
    }
    throw LaunchRefusal(.notExecutable, "\(path): too many scripts that interpret one another")
  }

  /// execvp(3) lets it run what the kernel does not know.
  public static let shell = "/bin/sh"
  /// As deep as the kernel follows `#!` (BINPRM), and the program itself.
  private static let deepestScript = 6

  private func image(_ program: String) throws(LaunchRefusal) -> ProgramImage {
    do {
      return try ProgramImage.read(program)
    } catch {
      let why = String(cString: strerror(error.code))
      throw LaunchRefusal(
        .notAttachable, "\(program) cannot be read to see whether it is dynamically linked (\(why))")
    }
  }

  private func checkLoader(_ loader: String, of program: String) throws(LaunchRefusal) {
    let name = loader.split(separator: "/").last ?? ""
    if name.hasPrefix("ld-musl") || name.hasPrefix("linker") {
      throw LaunchRefusal(
        .notAttachable,
        "\(program) uses another C library (\(loader)), and libvswap.so needs glibc; use a glibc build"
      )
    }
    guard access(loader, F_OK) == 0 else {
      throw LaunchRefusal(.notExecutable, "\(program): its dynamic loader \(loader) does not exist")
    }
  }

  /// The loader's AT_SECURE rules: exec changes an id, or brings capabilities to somebody who is not root.
  private func checkPrivileges(of program: String) throws(LaunchRefusal) {
    var file = stat()
    var mount = statvfs()
    guard stat(program, &file) == 0, statvfs(program, &mount) == 0 else {
      throw LaunchRefusal(.notExecutable, "\(program): \(String(cString: strerror(errno)))")
    }
    let honoured = mount.f_flag & UInt(ST_NOSUID) == 0
    let changesIdentifiers = honoured && !noNewPrivileges
    let becomes: String
    if changesIdentifiers && file.st_mode & S_ISUID != 0 && file.st_uid != user {
      becomes = "set-user-ID"
    } else if changesIdentifiers && file.st_mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP
      && file.st_gid != group
    {
      becomes = "set-group-ID"
    } else if honoured && user != 0 && hasCapabilities(program) {
      becomes = "given file capabilities"
    } else {
      return
    }
    throw LaunchRefusal(
      .notAttachable,
      "\(program) is \(becomes) and so ignores LD_PRELOAD; run it as the user it changes to, or as root"
    )
  }
}
