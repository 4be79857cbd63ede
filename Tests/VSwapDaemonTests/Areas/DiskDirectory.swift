import Foundation

/// A directory on a disk for one test, removed with the value: the one for temporary files may lie in memory.
final class DiskDirectory {
  let path: String

  init() throws {
    path = "/var/tmp/vswap-test-\(UInt32.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
  }

  deinit {
    try? FileManager.default.removeItem(atPath: path)
  }

  var isEmpty: Bool {
    (try? FileManager.default.contentsOfDirectory(atPath: path).isEmpty) == true
  }

  /// Writes a file and returns its path.
  func file(_ name: String, _ bytes: [UInt8], mode: Int = 0o600) throws -> String {
    let file = "\(path)/\(name)"
    try Data(bytes).write(to: URL(filePath: file))
    try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: file)
    return file
  }
}
