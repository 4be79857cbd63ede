import ArgumentParser
import Glibc
import VSwapAPI

/// `vswapctl`.
struct ControlCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vswapctl",
    abstract: "Runs programs under a memory limit and controls vswapd.",
    discussion:
      "Sizes take K, M or G (powers of 1024). Exit status: 0, 1 for a failure, 64 for wrong options.",
    version: vswapVersion,
    subcommands: [
      RunCommand.self, StatusCommand.self, EvictCommand.self, RestoreCommand.self, LimitCommand.self,
      DetachCommand.self, SwaponCommand.self, SwapoffCommand.self,
    ])

  @OptionGroup var connection: ConnectionOptions

  func run() throws {
    throw ValidationError("no command given")
  }

  /// Runs the command line and returns the exit status.
  static func invoke(_ arguments: [String]) -> Int32 {
    if let argument = CommandLine.firstInvalid {
      let status = commandName(arguments) == "run" ? LaunchRefusal.Status.notAttachable.rawValue : EX_USAGE
      reportError("'\(argument)' is not UTF-8, in which vswapd has the names of files and groups; rename it")
      return status
    }
    do {
      var command = try parseAsRoot(arguments)
      try command.run()
      return EXIT_SUCCESS
    } catch let status as ExitCode {
      return status.rawValue
    } catch let failure as CommandFailure {
      reportError(failure.message)
      return EXIT_FAILURE
    } catch let refusal as LaunchRefusal {
      reportError(refusal.message)
      return refusal.status.rawValue
    } catch {
      guard exitCode(for: error) != .success else { exit(withError: error) }  // --help, --version
      let command = commandName(arguments)
      let reason = message(for: error).split(separator: "\n").joined(separator: " ")
      let help = ["vswapctl", command, "--help"].compactMap(\.self).joined(separator: " ")
      reportError("\(reason.prefix(1).lowercased())\(reason.dropFirst()); see `\(help)`")
      let isRun = command == RunCommand.configuration.commandName
      return isRun ? LaunchRefusal.Status.notAttachable.rawValue : EX_USAGE
    }
  }

  private static func reportError(_ message: String) {
    StandardError.writeLine("vswapctl: \(message)")
  }

  /// The command that a command line which could not be parsed is for.
  private static func commandName(_ arguments: [String]) -> String? {
    var rest = arguments[...]
    while let argument = rest.popFirst() {
      if argument == "--socket" || argument == "--embedded-of" {
        _ = rest.popFirst()
      } else if !argument.hasPrefix("-") {
        return configuration.subcommands.compactMap { $0.configuration.commandName }.first { $0 == argument }
      }
    }
    return nil
  }
}

extension CommandLine {
  /// The first argument in front of `--` that no String can hold, escaped: another file would be meant. What is
  /// behind it is passed on byte for byte.
  fileprivate static var firstInvalid: String? {
    for index in 1..<max(1, Int(argc)) {
      let argument = unsafeArgv[index]!  // argc counts them
      if strcmp(argument, "--") == 0 { return nil }
      let bytes = UnsafeBufferPointer(start: argument, count: strlen(argument)).map { UInt8(bitPattern: $0) }
      if String(validating: bytes, as: UTF8.self) == nil { return EscapedText.ascii(bytes) }
    }
    return nil
  }
}

/// Why a command did not do what it is for.
struct CommandFailure: Error {
  /// One line: what is wrong and what to do.
  var message: String
}
