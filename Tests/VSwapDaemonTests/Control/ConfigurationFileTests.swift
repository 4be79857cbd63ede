import Testing
import VSwapAPI
import VSwapDaemon

@Suite("Configuration file")
struct ConfigurationFileTests {
  private func read(_ text: String) throws -> ConfigurationFile {
    let directory = try ScratchDirectory()
    return try ConfigurationFile(path: directory.file("vswapd.json", text.utf8))
  }

  @Test("keys")
  func keys() throws {
    let file = try read(#"{"runtime_dir": "/run/x", "pool_limit": "2G"}"#)
    #expect(file.runtimeDirectory == "/run/x")
    #expect(file.poolLimitBytes == 2 << 30)
    let open = try read(#"{"attach_group": "kvm", "attach_everyone": true}"#)
    #expect(open.attachGroup == "kvm" && open.attachEveryone)
    let bounded = try read(#"{"user_processes": 10, "user_swapped": "3G"}"#)
    #expect(bounded.userProcesses == 10 && bounded.userSwappedBytes == 3 << 30)
    let empty = try read("{}")
    #expect(empty.attachGroup == nil && !empty.attachEveryone)
    #expect(empty.runtimeDirectory == nil && empty.poolLimitBytes == nil && empty.swapAreas.isEmpty)
  }

  @Test("swap areas")
  func swapAreas() throws {
    let file = try read(
      #"{"swap": [{"path": "/swap0", "size": "2G", "priority": 5}, {"path": "/dev/sdx"}]}"#)
    #expect(
      file.swapAreas == [
        SwapSpecification(path: "/swap0", sizeBytes: 2 << 30, priority: 5),
        SwapSpecification(path: "/dev/sdx", sizeBytes: nil, priority: nil),
      ])
  }

  @Test("comments, and commas behind the last entry")
  func relaxed() throws {
    let file = try read(
      """
      // "runtime_dir": "/run/x",
      { // {
        "pool_limit": "2G", // , "a": 1
        "swap": [{"path": "/a//b\\"", "size": "2M"}, /////
          // ]
        ],
      }
      """)
    #expect(file.poolLimitBytes == 2 << 30)
    #expect(file.swapAreas.map(\.path) == ["/a//b\""])
    #expect(throws: StartupError.self) { try read("{,,}") }
    #expect(throws: StartupError.self) { try read("/ {}") }
    #expect(try read("{}//").swapAreas.isEmpty)
  }

  @Test("the file that scripts/install puts there changes nothing")
  func installed() throws {
    let path = "\(#filePath)".replacing(
      "Tests/VSwapDaemonTests/Control/ConfigurationFileTests.swift", with: "systemd/vswapd.json")
    let file = try ConfigurationFile(path: path)
    #expect(file == (try read("{}")))
  }

  @Test(
    "mistakes are named with the file and the key",
    arguments: [
      ("", "not valid JSON"), ("{", "not valid JSON"), ("[]", "must be an object"),
      (#"{"pool_limt": "2G"}"#, "'pool_limt' is not known"),
      (#"{"user_processes": 0}"#, "'user_processes' must be from 1 to 4095"),
      (#"{"user_processes": 1.5}"#, "'user_processes' must be a whole number"),
      (#"{"user_swapped": "all"}"#, "'user_swapped' must be a size"),
      (#"{"attach_group": ""}"#, "'attach_group' must be the name of a group"),
      (#"{"attach_everyone": "yes"}"#, "'attach_everyone' must be true or false"),
      (#"{"runtime_dir": 3}"#, "'runtime_dir' must be a string"),
      (#"{"runtime_dir": "run"}"#, "'runtime_dir' must be an absolute path"),
      (#"{"pool_limit": 2}"#, "'pool_limit' must be a string"),
      (#"{"pool_limit": "2X"}"#, "'pool_limit' must be a size: '2X'"),
      (#"{"pool_limit": "1"}"#, "too small"),
      (#"{"swap": {}}"#, "'swap' must be a list"),
      (#"{"swap": [{}]}"#, "'path' is missing"),
      (#"{"swap": [{"path": "swap0", "size": "2M"}]}"#, "must be an absolute path"),
      (#"{"swap": [{"path": "/swap0", "size": "1M"}]}"#, "must be a size: '1M' is too small"),
      (#"{"swap": [{"path": "/swap0", "prio": 1}]}"#, "is not known"),
      (#"{"swap": [{"path": "/swap0", "priority": -2}]}"#, "from 0 to 32767"),
    ])
  func mistakes(text: String, reason: String) {
    let error = #expect(throws: StartupError.self) { try read(text) }
    #expect(error?.message.contains(reason) == true, "\(error?.message ?? "")")
    #expect(error?.message.contains("/vswapd.json") == true)
  }

  @Test("what is no file", arguments: ["/nonexistent/file", "/", "/dev/zero"])
  func unreadable(path: String) {
    let error = #expect(throws: StartupError.self) { try ConfigurationFile(path: path) }
    #expect(error?.message.hasPrefix(path) == true)
  }
}
