import Testing
import VSwapAPI

@Suite("Finding programs")
struct ProgramSearchTests {
  private func search(_ command: String, _ path: String?) -> Result<String, LaunchRefusal> {
    Result { () throws(LaunchRefusal) in try ProgramSearch.find(command, searchPath: path) }
  }

  private func status(_ result: Result<String, LaunchRefusal>) -> LaunchRefusal.Status? {
    if case .failure(let refusal) = result { refusal.status } else { nil }
  }

  @Test("the first executable in the path")
  func found() throws {
    let (first, second) = (try ScratchDirectory(), try ScratchDirectory())
    _ = try first.file("tool", [], mode: 0o644)
    let program = try second.file("tool", [])
    #expect(search("tool", "/nonexistent:\(first.path):\(second.path)") == .success(program))
    #expect(search(program, "") == .success(program))
    #expect(search("sh", nil) == .success("/bin/sh"))
  }

  @Test("127 for what does not exist")
  func missing() throws {
    let directory = try ScratchDirectory()
    _ = try directory.file("tool", [])
    #expect(status(search("nothing", directory.path)) == .notFound)
    #expect(status(search("", directory.path)) == .notFound)
    #expect(status(search("\(directory.path)/nothing", nil)) == .notFound)
    #expect(status(search("\(directory.path)/tool/nothing", nil)) == .notFound)
    #expect(search("nothing", "") == .failure(LaunchRefusal(.notFound, "nothing: command not found")))
  }

  @Test("126 for what cannot be executed")
  func notExecutable() throws {
    let directory = try ScratchDirectory()
    let plain = try directory.file("plain", [], mode: 0o644)
    #expect(status(search("plain", directory.path)) == .notExecutable)
    #expect(status(search(plain, nil)) == .notExecutable)
    #expect(status(search(directory.path, nil)) == .notExecutable)
  }
}
