import Foundation
import Testing
import VSwapAPI

@testable import VSwapDaemon

/// The programs themselves, as far as they need no daemon of their own.
@Suite("Command line", .enabled(if: BuiltProgram.areThere, "vswapctl and vswapd are not beside the test"))
struct CommandLineTests {
  private func run(_ program: String, _ arguments: [String]) throws -> BuiltProgram.Outcome {
    try BuiltProgram.run(program, arguments)
  }

  @Test(
    "mistakes cost one line and the documented status",
    arguments: [
      ([], 64, "no command given"), (["frobnicate"], 64, "frobnicate"), (["status", "--foo"], 64, "--foo"),
      (["evict"], 64, "pid|group"), (["evict", "7", "--size", "64X"], 64, "--size: '64X' is not a size"),
      (["limit", "a", "automatic"], 64, "limit: 'automatic' is not a size"), (["limit", "a", "3M"], 64, "at least 4M"),
      (["detach", "x"], 64, "'x'"), (["swapon"], 64, "either a path or --show"),
      (["swapon", "/x", "--show"], 64, "either a path or --show"), (["swapon", ""], 64, "the path is empty"),
      (["swapon", "/x", "--size", "1M"], 64, "--size: '1M' is too small (at least 2M)"),
      (["swapon", "/x", "--priority", "x"], 64, "--priority"),
      (["swapon", "/x", "--priority", "32768"], 64, "from 0 to 32767"),
      (["swapon", "/x", "--json"], 64, "--json goes with --show"),
      (["swapon", "--show", "--size", "2M"], 64, "go with a path"),
      (["swapoff"], 64, "either a path or --all"), (["swapoff", "/x", "--all"], 64, "either a path or --all"),
      (["swapoff", ""], 64, "the path is empty"),
      (["--socket", "/nonexistent/s", "swapoff", "/x"], 1, "no daemon answers at /nonexistent/s"),
      (
        ["--socket", "/nonexistent/s", "status"], 1,
        "no daemon answers at /nonexistent/s (No such file or directory)"
      ),
      (["--socket", "/nonexistent/s", "run"], 125, "no program given"),
      (["run", "true"], 125, "the program goes after --"), (["run", "--foo", "--", "true"], 125, "--foo"),
      (["run", "--limit", "64X", "--", "true"], 125, "--limit: '64X' is not a size"),
      (["run", "--limit", "1M", "--", "true"], 125, "at least 4M"),
      (["run", "--limit", "AUTO", "--", "true"], 125, "--limit: 'AUTO' is not a size"),
      (["run", "--limit", "99999999999G", "--", "true"], 125, "more than this machine can address"),
      (["run", "--pool-limit", "-1", "--", "true"], 125, "--pool-limit"),
      (["run", "--swap", "/x", "--", "true"], 125, "--swap: '/x' is not PATH:SIZE[:PRIO]"),
      (["run", "--swap", "/x:1M", "--", "true"], 125, "at least 2M"),
      (["run", "--", "no-such-program"], 127, "no-such-program: command not found"),
      (["run", "--", "/etc/passwd"], 126, "/etc/passwd: permission denied"),
      (["run", "--", "/"], 126, "is a directory"),
    ] as [([String], Int32, String)])
  func mistakes(arguments: [String], status: Int32, reason: String) throws {
    let outcome = try run("vswapctl", arguments)
    #expect(outcome.status == status)
    #expect(outcome.output.isEmpty)
    #expect(outcome.errors.hasPrefix("vswapctl: ") && outcome.errors.contains(reason), "\(outcome.errors)")
    #expect(
      outcome.errors.split(separator: "\n", omittingEmptySubsequences: false).count == 2, "\(outcome.errors)")
  }

  @Test(
    "mistakes of vswapd",
    arguments: [
      ([], 64, "no command given"), (["serve", "--foo"], 64, "--foo"),
      (["serve", "--pool-limit", "1K"], 64, "--pool-limit: '1K' is too small"),
      (["serve", "--swap", "/x:64X"], 64, "--swap: '/x:64X' is not PATH:SIZE[:PRIO]"),
      (
        ["serve", "--config", "/nonexistent/c"], 1,
        "/nonexistent/c cannot be read (No such file or directory)"
      ),
    ] as [([String], Int32, String)])
  func daemonMistakes(arguments: [String], status: Int32, reason: String) throws {
    let outcome = try run("vswapd", arguments)
    #expect(outcome.status == status)
    #expect(outcome.errors.hasPrefix("vswapd: ") && outcome.errors.contains(reason), "\(outcome.errors)")
    #expect(outcome.errors.split(separator: "\n").count == 1)
  }

  @Test("commands go to the daemon")
  func commands() throws {
    let served = try ServedPlane()
    let socket = ["--socket", served.socketPath]
    #expect(
      try run("vswapctl", socket + ["evict", "red-7", "--size", "1M"]).output == "evicted 2 pages (8.0 KiB)\n"
    )
    #expect(try run("vswapctl", ["restore", "7"] + socket).output == "restored 3 pages (12.0 KiB)\n")
    #expect(try run("vswapctl", socket + ["limit", "a", "64M"]).output.isEmpty)
    #expect(try run("vswapctl", socket + ["limit", "a", "auto"]).output.isEmpty)
    #expect(try run("vswapctl", socket + ["limit", "a", "none"]).status == 0)
    #expect(try run("vswapctl", socket + ["detach", "7"]).output == "restored 1 page (4.0 KiB)\n")
    #expect(
      served.plane.calls == [
        .evict(.group("red-7"), 1 << 20), .restore(.pid(7)), .setLimit("a", .fixed(bytes: 64 << 20)),
        .setLimit("a", .auto), .setLimit("a", .none), .detach(7),
      ])
    let status = try run("vswapctl", socket + ["status"])
    for word in ["62.9 MiB", "64.0 MiB", "3.0:1", "over limit", "The pool is full"] {
      #expect(status.output.contains(word), "\(status.output)")
    }
    let json = try run("vswapctl", socket + ["status", "--json"])
    #expect(json.output == (try served.request("GET", "/v1/status").body))
  }

  @Test("the daemon's refusals are one line and status 1")
  func refusals() throws {
    let served = try ServedPlane(FakeControlPlane(refusal: .init(.notFound, "there is no group 'a'")))
    let outcome = try run("vswapctl", ["--socket", served.socketPath, "restore", "a"])
    #expect(outcome.status == 1)
    #expect(outcome.errors == "vswapctl: there is no group 'a'\n")
  }

  @Test("run hands the command its environment, arguments and exit status")
  func runCommand() throws {
    let served = try ServedPlane()
    let script =
      #"test "$VSWAP_REQUIRED" = $$ || exit 1; echo "$VSWAP_GROUP:$VSWAP_LIMIT:$VSWAP_SOCKET:$1"; exit 7"#
    let outcome = try run(
      "vswapctl",
      ["--socket", served.socketPath, "run", "--limit", "64M", "--", "sh", "-c", script, "x", "--socket"])
    #expect(outcome.status == 7)
    let fields = outcome.output.dropLast().split(separator: ":")
    #expect(fields[0].hasPrefix("sh-"))
    #expect(fields[1...] == ["67108864", "\(served.directory.path)/attach.sock", "--socket"])
    let auto = try run(
      "vswapctl", ["--socket", served.socketPath, "run", "--limit", "auto", "--", "sh", "-c", #"echo "$VSWAP_LIMIT""#])
    #expect(auto.output == "auto\n")
    #expect(
      try run("vswapctl", ["--socket", served.socketPath, "run", "--", "sh", "-c", "kill -9 $$"]).status
        == 137)
    let clash = try run(
      "vswapctl", ["--socket", served.socketPath, "run", "--pool-limit", "8M", "--", "true"])
    #expect(clash.status == 125)
    #expect(clash.errors == "vswapctl: --pool-limit is the running daemon's; use --embedded\n")
    let swap = try run("vswapctl", ["--socket", served.socketPath, "run", "--swap", "/x:2M", "--", "true"])
    #expect(swap.status == 125)
    #expect(swap.errors.contains("use `vswapctl swapon` for the running one, or --embedded"))
  }

  @Test("swapon")
  func swapon() throws {
    let served = try ServedPlane()
    let socket = ["--socket", served.socketPath]
    let made = try run("vswapctl", socket + ["swapon", "/s/0", "--size", "2M", "--priority", "7"])
    #expect(made.output == "/s/0: 2.0 GiB, priority -2\n" && made.status == 0)
    #expect(made.errors.contains("no direct I/O"))
    #expect(try run("vswapctl", ["swapon", "relative"] + socket).status == 0)
    #expect(served.plane.calls.first == .swapon("/s/0", 2 << 20, 7))
    #expect(
      served.plane.calls.last == .swapon(FileManager.default.currentDirectoryPath + "/relative", nil, nil))
    let shown = try run("vswapctl", socket + ["swapon", "--show"]).output.split(separator: "\n")
    #expect(shown.first?.split(separator: " ") == ["NAME", "TYPE", "SIZE", "USED", "PRIO", "STATE"])
    #expect(shown.last?.hasSuffix("active, through the page cache, read errors: 1, write errors: 2") == true)
    let json = try run("vswapctl", socket + ["swapon", "--show", "--json"])
    #expect(json.output == (try served.request("GET", "/v1/areas").body))
    #expect(try run("vswapctl", socket + ["status"]).output.contains("/var/swap 0"))
  }

  private let off = SwapoffReply(
    path: "/a", slots: 1000, bytes: 1 << 20, toTarget: 600, toPool: 300, toAreas: 100, wallSeconds: 1.256,
    state: .off)

  @Test("swapoff sums up, or prints the results")
  func swapoff() throws {
    let lines = [FakeControlPlane.progress("/a", percent: 50), .result(off)]
    let served = try ServedPlane(FakeControlPlane(swapoffLines: lines))
    let socket = ["--socket", served.socketPath]
    let sum = try run("vswapctl", socket + ["swapoff", "/a"])
    #expect(
      sum.output
        == "/a: retired in 1.26 s: 1000 slots (1.0 MiB), 600 to programs, 300 to the pool, 100 to other areas\n")
    #expect(sum.status == 0 && sum.errors.isEmpty)
    let dry = try run("vswapctl", socket + ["swapoff", "--all", "--dry-run"])
    #expect(dry.output.hasPrefix("/a: can be retired: 1000 slots (1.0 MiB), "))
    let json = try run("vswapctl", socket + ["swapoff", "--json", "/a"])
    #expect(try JSONDecoder().decode(SwapoffReply.self, from: Data(json.output.utf8)) == off)
    #expect(json.output.split(separator: "\n").count == 1)
    #expect(served.plane.calls == [.swapoff("/a", false), .swapoff(nil, true), .swapoff("/a", false)])
  }

  @Test("an area that stays is one line and status 1")
  func swapoffRefused() throws {
    let refused = SwapoffReply(path: "/b", state: .refused, reason: "8 MiB are missing")
    let plane = FakeControlPlane(swapoffLines: [.result(off), .result(refused)])
    let served = try ServedPlane(plane)
    let outcome = try run("vswapctl", ["--socket", served.socketPath, "swapoff", "--all"])
    #expect(outcome.status == 1)
    #expect(outcome.errors == "vswapctl: /b stays active: 8 MiB are missing\n")
    #expect(outcome.output.hasPrefix("/a: retired"))
    let error = ControlError(.failed, "the disk is gone")
    for plane in [
      FakeControlPlane(swapoffLines: [FakeControlPlane.progress("/a", percent: 1)], lateRefusal: error),
      FakeControlPlane(refusal: error),
    ] {
      let served = try ServedPlane(plane)
      let failed = try run("vswapctl", ["--socket", served.socketPath, "swapoff", "/a"])
      #expect(failed.status == 1 && failed.errors == "vswapctl: the disk is gone\n")
    }
  }

  @Test("Ctrl-C cancels a swapoff")
  func swapoffInterrupted() throws {
    let path = FakeControlPlane.area.path
    let line = FakeControlPlane.progress(path, percent: 1)
    let served = try ServedPlane(
      FakeControlPlane(swapoffLines: Array(repeating: line, count: 10_000), lineMicroseconds: 1000))
    let outcome = try BuiltProgram.run(
      "vswapctl", ["--socket", served.socketPath, "swapoff", path], signal: SIGINT, when: { !served.plane.calls.isEmpty })
    #expect(outcome.status == 130)
    #expect(outcome.errors == "vswapctl: cancelled; \(path) stays active\n")
    let deadline = ContinuousClock.now + .seconds(5)
    while served.plane.calls.count < 2 && ContinuousClock.now < deadline { usleep(10_000) }
    #expect(served.plane.calls == [.swapoff(path, false), .cancelled])
  }
}
