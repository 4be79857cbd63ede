import Foundation

/// The programs of the package, which the build puts beside the tests.
enum BuiltProgram {
  private static let directory = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
    .deletingLastPathComponent().path
  static let areThere = ["vswapctl", "vswapd"].allSatisfy {
    FileManager.default.isExecutableFile(atPath: "\(directory)/\($0)")
  }

  struct Outcome {
    var status: Int32
    var output: String
    var errors: String
  }

  /// Runs a program to its end with a minimal environment, in which libm plays the library to preload. It gets a `signal`, if one
  /// is given, when `isReady` says so.
  static func run(
    _ program: String, _ arguments: [String], signal: Int32? = nil, when isReady: () -> Bool = { true }
  ) throws -> Outcome {
    let process = Process()
    let (output, errors) = (Pipe(), Pipe())
    process.executableURL = URL(filePath: "\(directory)/\(program)")
    process.arguments = arguments
    process.environment = ["PATH": "/usr/bin:/bin", "VSWAP_SHIM": "/lib/x86_64-linux-gnu/libm.so.6"]
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = errors
    try Spawning.alone { try process.run() }
    if let signal {
      while !isReady() && process.isRunning { usleep(1000) }
      kill(process.processIdentifier, signal)
    }
    let text = output.fileHandleForReading.readDataToEndOfFile()
    let complaint = errors.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return Outcome(
      status: process.terminationStatus, output: String(decoding: text, as: UTF8.self),
      errors: String(decoding: complaint, as: UTF8.self))
  }
}
