import Glibc

/// What kind of program a file is, as far as it decides whether a library can be preloaded into it.
public enum ProgramImage: Equatable, Sendable {
  /// An ELF program of this machine that the dynamic loader `loader` starts.
  case dynamicallyLinked(loader: String)
  /// An ELF program of this machine without a dynamic loader.
  case staticallyLinked
  /// An ELF program of another machine or word size, described as in "a 32-bit program".
  case foreign(String)
  /// Begins with "#!": the kernel starts `interpreter` instead.
  case script(interpreter: String)
  /// Begins like an ELF file and does not go on like one.
  case damaged
  /// None of these. execvp(3) hands such a file to /bin/sh.
  case unknown

  /// Reads the head of the file at `path`. It is not checked that the program would run.
  ///
  /// - Throws: ``ImageError`` when it cannot be opened or read.
  public static func read(_ path: String) throws(ImageError) -> ProgramImage {
    let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard file >= 0 else { throw ImageError(code: errno) }
    defer { close(file) }
    let head = try read(file, at: 0, count: 256)
    if head.starts(with: [0x7F, 0x45, 0x4C, 0x46]) { return try elf(file, head) }
    if head.starts(with: [UInt8(ascii: "#"), UInt8(ascii: "!")]) { return script(head) }
    return .unknown
  }

  // Offsets in Elf64_Ehdr and Elf64_Phdr, elf(5).
  private static func elf(_ file: Int32, _ head: [UInt8]) throws(ImageError) -> ProgramImage {
    guard head.count >= 64 else { return .damaged }
    guard head[4] == 2 else { return .foreign("a 32-bit program") }
    let byteOrderIsLittle = head[5] == 1
    guard byteOrderIsLittle, integer(head, 18, UInt16.self) == machine else {
      return .foreign("a program for another processor")
    }
    let offset = integer(head, 32, UInt64.self)
    let entrySize = Int(integer(head, 54, UInt16.self))
    let entries = Int(integer(head, 56, UInt16.self))
    guard entrySize == 56, (1...1024).contains(entries), offset < 1 << 40 else { return .damaged }
    let table = try read(file, at: Int(offset), count: entries * entrySize)
    guard table.count == entries * entrySize else { return .damaged }
    for start in stride(from: 0, to: table.count, by: entrySize) {
      let typeInterpreter: UInt32 = 3
      guard integer(table, start, UInt32.self) == typeInterpreter else { continue }
      let position = integer(table, start + 8, UInt64.self)
      let length = integer(table, start + 32, UInt64.self)
      guard position < 1 << 40, (2...UInt64(PATH_MAX)).contains(length) else { return .damaged }
      let name = try read(file, at: Int(position), count: Int(length))
      return .dynamicallyLinked(loader: String(decoding: name.prefix { $0 != 0 }, as: UTF8.self))
    }
    return .staticallyLinked
  }

  private static func script(_ head: [UInt8]) -> ProgramImage {
    let blank = [UInt8(ascii: " "), UInt8(ascii: "\t")]
    let line = head.dropFirst(2).prefix { $0 != UInt8(ascii: "\n") && $0 != 0 }
    let interpreter = line.drop { blank.contains($0) }.prefix { !blank.contains($0) }
    return interpreter.isEmpty ? .unknown : .script(interpreter: String(decoding: interpreter, as: UTF8.self))
  }

  /// Up to `count` bytes from `offset`; fewer at the end of the file.
  private static func read(_ file: Int32, at offset: Int, count: Int) throws(ImageError) -> [UInt8] {
    var code: Int32 = 0
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      repeat {
        let got = pread(file, buffer.baseAddress! + filled, count - filled, off_t(offset + filled))
        if got < 0 && errno == EINTR { continue }
        if got < 0 { code = errno }
        if got <= 0 { break }
        filled += got
      } while filled < count
    }
    guard code == 0 else { throw ImageError(code: code) }
    return bytes
  }

  private static func integer<T: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, _: T.Type) -> T {
    bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
  }

  /// e_machine of the programs that run here.
  #if arch(x86_64)
    private static let machine: UInt16 = 62
  #elseif arch(arm64)
    private static let machine: UInt16 = 183
  #endif
}

/// A program file that cannot be read.
public struct ImageError: Error, Equatable, Sendable {
  /// errno.
  public let code: Int32
}
