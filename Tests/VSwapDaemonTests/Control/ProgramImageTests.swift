import Glibc
import Testing
import VSwapAPI

@Suite("Program files")
struct ProgramImageTests {
  /// Fields of a small ELF file; the interpreter's name follows the program header.
  private struct Elf {
    var wordSize: UInt8 = 2
    var byteOrder: UInt8 = 1
    var machine: UInt16 = ProgramImageTests.machine
    var interpreter: String?
    var programHeaderOffset: UInt64 = 64
    var programHeaders: UInt16 = 1
    var nameLength: UInt64?

    var bytes: [UInt8] {
      var bytes: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, wordSize, byteOrder, 1] + [UInt8](repeating: 0, count: 9)
      func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes += $0 }
      }
      put(UInt16(3))
      put(machine)
      put(UInt32(1))
      put(UInt64(0))  // entry
      put(programHeaderOffset)
      put(UInt64(0))
      put(UInt32(0))
      put(UInt16(64))
      put(UInt16(56))
      put(programHeaders)
      bytes += [UInt8](repeating: 0, count: 64 - bytes.count)
      let name: [UInt8] = interpreter.map { $0.utf8 + [0] } ?? []
      put(UInt32(interpreter == nil ? 1 : 3))
      put(UInt32(4))
      put(UInt64(120))  // where the name is
      put(UInt64(0))
      put(UInt64(0))
      put(nameLength ?? UInt64(name.count))
      put(UInt64(0))
      put(UInt64(0))
      return bytes + name
    }
  }

  #if arch(x86_64)
    private static let machine: UInt16 = 62
  #elseif arch(arm64)
    private static let machine: UInt16 = 183
  #endif

  private func image(_ bytes: some Sequence<UInt8>) throws -> ProgramImage {
    let directory = try ScratchDirectory()
    return try ProgramImage.read(directory.file("program", bytes))
  }

  @Test("ELF files")
  func elf() throws {
    #expect(try image(Elf(interpreter: "/lib/ld.so").bytes) == .dynamicallyLinked(loader: "/lib/ld.so"))
    #expect(try image(Elf().bytes) == .staticallyLinked)
    #expect(try image(Elf(wordSize: 1).bytes) == .foreign("a 32-bit program"))
    #expect(try image(Elf(machine: 8).bytes) == .foreign("a program for another processor"))
    #expect(try image(Elf(byteOrder: 2).bytes) == .foreign("a program for another processor"))
  }

  @Test("damaged ELF files")
  func damaged() throws {
    #expect(try image(Elf().bytes.prefix(20)) == .damaged)
    #expect(try image(Elf().bytes.prefix(100)) == .damaged)
    #expect(try image(Elf(programHeaderOffset: .max).bytes) == .damaged)
    #expect(try image(Elf(programHeaders: 0).bytes) == .damaged)
    #expect(try image(Elf(programHeaders: 65535).bytes) == .damaged)
    #expect(try image(Elf(interpreter: "/lib/ld.so", nameLength: .max).bytes) == .damaged)
    #expect(try image(Elf(interpreter: "/lib/ld.so", nameLength: 0).bytes) == .damaged)
  }

  @Test(
    "scripts and other files",
    arguments: [
      ("#!/bin/sh\necho\n", ProgramImage.script(interpreter: "/bin/sh")),
      ("#! /usr/bin/env python3 -u\n", .script(interpreter: "/usr/bin/env")),
      ("#!\t/bin/sh", .script(interpreter: "/bin/sh")),
      ("#!\n", .unknown), ("#!   \n", .unknown), ("echo hello\n", .unknown), ("", .unknown),
      ("\u{7F}EL", .unknown),
    ])
  func scripts(text: String, expected: ProgramImage) throws {
    #expect(try image(text.utf8) == expected)
  }

  @Test("a file that cannot be read")
  func unreadable() {
    #expect(throws: ImageError.self) { try ProgramImage.read("/nonexistent/program") }
  }

  private let root = PreloadCheck(user: 0, group: 0, noNewPrivileges: false) { _ in false }

  private func refusal(_ check: PreloadCheck, _ path: String) -> LaunchRefusal? {
    do throws(LaunchRefusal) {
      try check.check(path)
      return nil
    } catch {
      return error
    }
  }

  @Test("what can be preloaded")
  func accepted() throws {
    let directory = try ScratchDirectory()
    #expect(refusal(root, "/bin/sh") == nil)
    #expect(refusal(root, try directory.file("script", "#!/bin/sh\n".utf8)) == nil)
    #expect(refusal(root, try directory.file("text", "echo\n".utf8)) == nil)
  }

  @Test("what cannot be preloaded: 125")
  func notAttachable() throws {
    let directory = try ScratchDirectory()
    let fixed = try directory.file("static", Elf().bytes)
    let musl = try directory.file("musl", Elf(interpreter: "/lib/ld-musl-x86_64.so.1").bytes)
    let narrow = try directory.file("narrow", Elf(wordSize: 1).bytes)
    let script = try directory.file("script", "#!\(fixed)\n".utf8)
    for (path, reason) in [
      (fixed, "statically linked"), (musl, "another C library"), (narrow, "32-bit"),
      (script, "statically linked"),
    ] {
      let error = refusal(root, path)
      #expect(error?.status == .notAttachable)
      #expect(error?.message.contains(reason) == true)
    }
  }

  @Test("what cannot run: 126")
  func notExecutable() throws {
    let directory = try ScratchDirectory()
    let loop = "\(directory.path)/loop"
    for bytes in [
      Array("#!/nonexistent/interpreter\n".utf8), Elf(interpreter: "/nonexistent/ld.so").bytes,
      Array(Elf().bytes.prefix(30)), Array("#!\(loop)\n".utf8),
    ] {
      #expect(refusal(root, try directory.file("loop", bytes))?.status == .notExecutable)
    }
  }

  @Test("set-id bits and capabilities count when they change something")
  func privileges() throws {
    let directory = try ScratchDirectory()
    let content = Elf(interpreter: "/bin/sh").bytes
    let plain = try directory.file("plain", content)
    let setUser = try directory.file("set-user", content, mode: 0o4755)
    let setGroup = try directory.file("set-group", content, mode: 0o2755)
    let lockedGroup = try directory.file("mandatory-lock", content, mode: 0o2744)
    let (user, group) = (getuid(), getgid())
    func check(_ user: UInt32, _ group: UInt32, bound: Bool = false, capable: Bool = false) -> PreloadCheck {
      PreloadCheck(user: user, group: group, noNewPrivileges: bound) { _ in capable }
    }
    #expect(refusal(check(user, group), setUser) == nil)
    #expect(refusal(check(user + 1, group), setUser)?.status == .notAttachable)
    #expect(refusal(check(user + 1, group, bound: true), setUser) == nil)
    #expect(refusal(check(user, group), setGroup) == nil)
    #expect(refusal(check(user, group + 1), setGroup)?.status == .notAttachable)
    #expect(refusal(check(user, group + 1), lockedGroup) == nil)
    #expect(refusal(check(1, 1, capable: true), plain)?.status == .notAttachable)
    #expect(refusal(check(0, 0, capable: true), plain) == nil)
  }
}
