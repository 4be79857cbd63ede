import CUserfault
import Glibc
import VSwapAPI

/// The command of `run`, started.
struct CommandProcess {
  let process: pid_t
  /// The group it and its descendants are in.
  let group: String

  /// Longest part of a group's name that comes from the command's.
  private static let longestStem = 40

  /// Starts the last `argumentCount` arguments of this process's command line, of which the first names the
  /// command; they are passed on byte for byte.
  ///
  /// - Throws: ``LaunchRefusal``: 127, 126 as execve(2) says, 125 when there is no process to be had.
  init(program: String, argumentCount: Int, changes: [String]) throws(LaunchRefusal) {
    let arguments = CommandLine.unsafeArgv + (Int(CommandLine.argc) - argumentCount)
    let name = String(cString: arguments[0]!)  // there is at least the command
    let stem = Self.stem(name)
    var process = Self.spawn(program, UnsafePointer(arguments), changes, stem)
    if process == -ENOEXEC {
      process = CStringList([PreloadCheck.shell, program]).withStart { shell in
        let rest = (1...argumentCount).map { arguments[$0] }  // the NULL at the end included
        return Self.spawn(PreloadCheck.shell, [shell[0], shell[1]] + rest, changes, stem)
      }
    }
    guard process > 0 else { throw Self.refusal(name, -process) }
    self.process = process
    group = "\(stem)-\(process)"
  }

  /// Waits for the end; SIGTERM and SIGHUP go to the command meanwhile. Returns the exit status for vswapctl.
  ///
  /// - Parameter outsiders: look from time to time, if they are to be known.
  func wait(_ outsiders: Outsiders?) -> Int32 {
    let context = outsiders.map { Unmanaged.passUnretained($0).toOpaque() }
    let look: (@convention(c) (UnsafeMutableRawPointer?) -> Void)? =
      outsiders == nil
      ? nil : { Unmanaged<Outsiders>.fromOpaque($0!).takeUnretainedValue().look() }  // it is the context
    let status = withExtendedLifetime(outsiders) { vs_wait_forwarding(process, Outsiders.interval, look, context) }
    precondition(status >= 0, "a child that cannot be waited for")
    return status
  }

  private static func spawn(
    _ program: String, _ arguments: UnsafePointer<UnsafeMutablePointer<CChar>?>, _ changes: [String],
    _ stem: String
  ) -> pid_t {
    CStringList(changes).withStart { changes in
      program.withCString { path in
        var request = vs_program(path: path, argv: arguments, changes: changes)
        return vs_spawn_command(&request, stem)
      }
    }
  }

  /// The file name of the command, of characters that need no quoting anywhere.
  private static func stem(_ command: String) -> String {
    let name = command.split(separator: "/").last ?? "command"
    return String(
      name.prefix(longestStem).map { character in
        character.isASCII && (character.isLetter || character.isNumber || "._+-".contains(character))
          ? character : "_"
      })
  }

  private static func refusal(_ command: String, _ code: Int32) -> LaunchRefusal {
    let reason = String(cString: strerror(code))
    switch code {
    case ENOENT: return LaunchRefusal(.notFound, "\(command): command not found")
    case EAGAIN, ENOMEM, EMFILE, ENFILE:
      return LaunchRefusal(.notAttachable, "cannot start a process: \(reason); end others or raise the limit")
    default: return LaunchRefusal(.notExecutable, "\(command): \(reason.lowercased())")
    }
  }
}
