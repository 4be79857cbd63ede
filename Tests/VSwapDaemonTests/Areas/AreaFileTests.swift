import Foundation
import Testing

@testable import VSwapDaemon

private func refusal(_ path: String, size: Int? = nil, known: [AreaFile] = []) -> AreaFileError? {
  do {
    try AreaFile.open(path: path, sizeBytes: size, known: known).close(removing: false)
    return nil
  } catch {
    return error
  }
}

@Suite("Area files")
struct AreaFileTests {
  private let directory: DiskDirectory

  init() throws {
    directory = try DiskDirectory()
  }

  @Test("a file is made with all of its blocks, private, and goes when it is removed")
  func made() throws {
    let path = directory.path + "/swap0"
    let file = try AreaFile.open(path: path, sizeBytes: 4 << 20 + 5000, known: [])
    #expect(file.path == path && file.wasMade && !file.isBlockDevice)
    #expect(file.sizeBytes == 4 << 20)
    var facts = stat()
    #expect(stat(path, &facts) == 0)
    #expect(facts.st_mode == S_IFREG | 0o600)
    #expect(facts.st_size == 4 << 20 && Int(facts.st_blocks) * 512 >= 4 << 20)
    #expect(facts.st_ino == file.inode && facts.st_dev == file.device)
    let expected = AreaSignature(identity: file.identity, sizeBytes: 4 << 20)
    #expect(try AreaSignature.content(of: file.descriptor) == .signature(expected))
    #expect(fcntl(file.descriptor, F_GETFD) & FD_CLOEXEC != 0)
    #expect((fcntl(file.descriptor, F_GETFL) & O_DIRECT != 0) == file.isDirect)
    #expect(file.close(removing: true))
    #expect(access(path, F_OK) != 0)
  }

  @Test("a file that an earlier use left is taken again, with another identity and all of its blocks")
  func adopted() throws {
    let path = directory.path + "/swap0"
    let first = try AreaFile.open(path: path, sizeBytes: 2 << 20, known: [])
    #expect(fallocate(first.descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20) == 0)
    #expect(!first.close(removing: false))

    #expect(refusal(path, size: 4 << 20) == .sizeDiffers(actual: 2 << 20))
    for size in [nil, 2 << 20] {
      let again = try AreaFile.open(path: path, sizeBytes: size, known: [])
      #expect(!again.wasMade && again.sizeBytes == 2 << 20)
      #expect(again.identity != first.identity)
      var facts = stat()
      #expect(fstat(again.descriptor, &facts) == 0 && Int(facts.st_blocks) * 512 >= 2 << 20)
      #expect(again.close(removing: size != nil) == (size != nil))
    }
    #expect(access(path, F_OK) != 0)
  }

  @Test("paths are resolved, and one area is not two")
  func links() throws {
    let path = directory.path + "/swap0"
    let link = directory.path + "/link"
    #expect(symlink("swap0", link) == 0)
    #expect(refusal(link, size: 2 << 20) == .inTheWay)
    #expect(mkdir(directory.path + "/x", 0o700) == 0)
    let file = try AreaFile.open(path: directory.path + "/./x/../swap0", sizeBytes: 2 << 20, known: [])
    defer { file.close(removing: true) }
    #expect(file.path == path)
    #expect(refusal(link, known: [file]) == .known)
    #expect(refusal(path, known: []) == .usedByDaemon)
    #expect(symlink(directory.path, directory.path + "/here") == 0)
    #expect(refusal(directory.path + "/here/swap0", size: 2 << 20, known: [file]) == .known)
  }

  /// Another daemon retires the file between the look at its path and the moment when it lets go of it. The area would have had no name, and its space
  /// would have been nobody's.
  @Test("a file that is retired while its lock is waited for is no area")
  func retiredMeanwhile() throws {
    let path = directory.path + "/swap0"
    let other = try AreaFile.open(path: path, sizeBytes: 2 << 20, known: [])
    let refused = Promise<AreaFileError?>()
    try Thread.start("test-second") { refused.fulfil(refusal(path)) }
    // It is open twice once the second one waits for the lock.
    let itself = getpid()
    func opened() throws -> Int {
      try FileManager.default.contentsOfDirectory(atPath: "/proc/\(itself)/fd").count { name in
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(itself)/fd/\(name)")) == path
      }
    }
    while try opened() < 2 { sched_yield() }
    #expect(other.close(removing: true))
    #expect(refused.wait() == .removed)
    #expect(directory.isEmpty)
  }

  @Test("only what is still there and still ours is removed")
  func replaced() throws {
    let path = directory.path + "/swap0"
    let file = try AreaFile.open(path: path, sizeBytes: 2 << 20, known: [])
    #expect(rename(path, path + ".old") == 0)
    _ = try directory.file("swap0", [1, 2, 3])
    #expect(!file.close(removing: true))
    #expect(access(path, F_OK) == 0)

    let old = try AreaFile.open(path: path + ".old", sizeBytes: nil, known: [])
    let writer = open(path + ".old", O_WRONLY)
    #expect(pwrite(writer, "something else", 14, 0) == 14)
    close(writer)
    #expect(!old.close(removing: true))
    #expect(access(path + ".old", F_OK) == 0)
  }

  @Test("sizes", arguments: [0, -1, 1, 2 << 20 - 1, 512 << 30 + 1, Int.max])
  func sizes(bytes: Int) {
    #expect(refusal(directory.path + "/new", size: bytes) == .sizeOutOfRange(bytes))
    #expect(directory.isEmpty)
  }

  @Test("what does not exist needs a size, and a directory")
  func missing() {
    #expect(refusal(directory.path + "/new") == .sizeMissing)
    let error = AreaFileError.system(KernelError(call: "realpath", code: ENOENT))
    #expect(refusal(directory.path + "/no/new", size: 2 << 20) == error)
    #expect(refusal(directory.path + "/new/", size: 2 << 20) == error)
    #expect(refusal("relative", size: 2 << 20) == .unusablePath)
    #expect(refusal("", size: 2 << 20) == .unusablePath)
    #expect(refusal(directory.path + "/a\u{0}b", size: 2 << 20) == .unusablePath)
    #expect(directory.isEmpty)
  }

  @Test("more than is free is refused before anything is made")
  func noSpace() {
    var facts = statvfs()
    #expect(statvfs(directory.path, &facts) == 0)
    let free = Int(facts.f_bavail * facts.f_frsize)
    guard free < 500 << 30 else { return }
    guard case .noSpace(let needed, let available)? = refusal(directory.path + "/new", size: 512 << 30) else {
      Issue.record("512 GiB were had")
      return
    }
    #expect(needed == 512 << 30 && available < needed)
    #expect(directory.isEmpty)
  }

  @Test("files that vswapd did not make stay as they are")
  func foreign() throws {
    var swap = [UInt8](repeating: 0, count: 4 << 20)
    swap.replaceSubrange(4086..<4096, with: Array("SWAPSPACE2".utf8))
    var early = [UInt8](repeating: 0, count: 4096)
    early.replaceSubrange(4086..<4096, with: Array("SWAP-SPACE".utf8))
    let files: [(String, [UInt8], AreaFileError)] = [
      ("empty", [], .foreignFile), ("short", Array("VSWAPD-AREA-1\n".utf8), .foreignFile),
      ("text", [UInt8](repeating: 65, count: 4 << 20), .foreignFile),
      ("zeros", [UInt8](repeating: 0, count: 4 << 20), .foreignFile),
      ("mkswap", swap, .kernelSwap), ("early", early, .kernelSwap),
    ]
    for (name, content, error) in files {
      let path = try directory.file(name, content)
      for size in [nil, 4 << 20] { #expect(refusal(path, size: size) == error, "\(name)") }
      #expect(try Data(contentsOf: URL(filePath: path)) == Data(content), "\(name)")
    }
  }

  @Test("a signature does not help a file that is too small or that others may open")
  func unfit() throws {
    let page = Array("VSWAPD-AREA-1\n".utf8) + [UInt8](repeating: 0, count: 4096 - 14)
    let small = try directory.file("small", page)
    #expect(refusal(small) == .sizeOutOfRange(4096))
    let open = try directory.file("open", page + [UInt8](repeating: 0, count: 2 << 20), mode: 0o640)
    #expect(refusal(open) == .insecure)
  }

  @Test("what is no file")
  func kinds() throws {
    #expect(refusal(directory.path) == .wrongKind("a directory"))
    #expect(refusal("/dev/null", size: 2 << 20) == .wrongKind("a character device"))
    let pipe = directory.path + "/pipe"
    #expect(mkfifo(pipe, 0o600) == 0)
    #expect(refusal(pipe, size: 2 << 20) == .wrongKind("a named pipe"))
    let socket = try ControlSocket(path: directory.path + "/socket")
    close(try socket.listen())
    #expect(refusal(socket.path) == .wrongKind("a socket"))
  }

  @Test("memory is no place to swap to")
  func memory() throws {
    let path = "/dev/shm/vswap-test-\(UInt32.random(in: 0 ... .max))"
    #expect(refusal(path, size: 2 << 20) == .inMemory("tmpfs"))
    #expect(access(path, F_OK) != 0)
    try Data(count: 4096).write(to: URL(filePath: path))
    defer { unlink(path) }
    #expect(refusal(path) == .inMemory("tmpfs"))
  }

  @Test("a block device", .enabled(if: LoopDevice.canBeMade, "needs root and a free loop device"))
  func device() throws {
    let loop = try LoopDevice(file: directory.file("disk", [UInt8](repeating: 0, count: 4 << 20 + 4096)))
    try Spawning.alone { try use(loop) }
  }

  private func use(_ loop: LoopDevice) throws {
    #expect(refusal(loop.path, size: 6 << 20) == .deviceTooSmall(actual: 4 << 20))
    for size in [nil, 2 << 20, 4 << 20] {
      let area = try AreaFile.open(path: loop.path, sizeBytes: size, known: [])
      #expect(area.isBlockDevice && !area.wasMade && area.sizeBytes == size ?? 4 << 20)
      #expect(refusal(loop.path, known: [area]) == .known)
      #expect(refusal(loop.path) == .deviceBusy)
      let used = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { used.deallocate() }
      used.initializeMemory(as: UInt8.self, repeating: 65, count: 4096)
      #expect(pwrite(area.descriptor, used, 4096, 512 << 10) == 4096)
      #expect(area.close(removing: size != nil) == (size != nil))
    }
    #expect(try loop.write([1], at: 1 << 20 - 1) == 1)
    #expect(refusal(loop.path) == .foreignDevice)
    #expect(try loop.write([0], at: 1 << 20 - 1) == 1)
    #expect(try loop.write(Array("SWAPSPACE2".utf8), at: 4086) == 10)
    #expect(refusal(loop.path) == .kernelSwap)
  }
}

/// A loop device over a file, let go with the value.
private final class LoopDevice {
  let path: String

  static let canBeMade = geteuid() == 0 && (try? losetup(["--find"])).map { !$0.isEmpty } == true

  init(file: String) throws {
    path = try Self.losetup(["--find", "--show", file])
    try #require(path.hasPrefix("/dev/loop"))
  }

  deinit {
    _ = try? Self.losetup(["--detach", path])
  }

  /// Returns how many bytes were written.
  func write(_ bytes: [UInt8], at offset: Int) throws -> Int {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    let count = pwrite(descriptor, bytes, bytes.count, off_t(offset))
    return fsync(descriptor) == 0 ? count : -1
  }

  private static func losetup(_ arguments: [String]) throws -> String {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(filePath: "/usr/sbin/losetup")
    process.arguments = arguments
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try Spawning.alone { try process.run() }
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return text.trimmingCharacters(in: .whitespacesAndNewlines)
  }
}
