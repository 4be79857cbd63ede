import Testing
import VSwapAPI

@testable import VSwapDaemon

@Suite("Escaped text")
struct EscapedTextTests {
  @Test(
    "a path is found again by what is shown",
    arguments: [
      ("/var/swap0", "/var/swap0"), ("/a\nb", #"/a\x0Ab"#), (#"/a\x0Ab"#, #"/a\x5Cx0Ab"#), ("/größe", "/größe"),
      ("/\u{1B}[2J\u{202E}", #"/\x1B[2J\xE2\x80\xAE"#), (#"/\"#, #"/\x5C"#),
    ])
  func paths(path: String, shown: String) {
    #expect(EscapedText.shown(path: path) == shown)
    #expect(EscapedText.path(shown: shown) == path)
    #expect(EscapedText.line(shown) == shown)
  }

  @Test("what no path is shown as", arguments: [#"/\"#, #"/\x"#, #"/\x0"#, #"/\xGG"#, #"/\x41"#, #"/\xFF"#, #"/\x0a"#, #"/\n"#])
  func shownByNone(text: String) {
    #expect(EscapedText.path(shown: text) == nil)
  }

  @Test("names of programs and groups: other bytes, other names; what is shown means the same")
  func names() {
    #expect(EscapedText.ascii([0x61, 0x20, 0x0A, 0xFF]) == #"a \x0A\xFF"#)
    let field: (UInt8, UInt8, UInt8, UInt8, UInt8) = (0x61, 0x0A, 0xFF, 0x20, 0)
    #expect(Wire.text(field) == #"a\x0A\xFF "#)
    #expect(Wire.text(field) == EscapedText.ascii([0x61, 0x0A, 0xFF, 0x20]))
    #expect(EscapedText.ascii(Wire.text(field).utf8) == Wire.text(field))
  }
}
