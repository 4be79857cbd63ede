import Foundation
import Testing

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
      (["limit", "a", "auto"], 64, "not available yet"), (["limit", "a", "3M"], 64, "at least 4M"),
      (["detach", "x"], 64, "'x'"), (["swapon", "/x"], 64, "swapon"),
      (
        ["--socket", "/nonexistent/s", "status"], 1,
        "no daemon answers at /nonexistent/s (No such file or directory)"
      ),
      (["--socket", "/nonexistent/s", "run"], 125, "no program given"),
      (["run", "true"], 125, "the program goes after --"), (["run", "--foo", "--", "true"], 125, "--foo"),
      (["run", "--limit", "64X", "--", "true"], 125, "--limit: '64X' is not a size"),
      (["run", "--limit", "1M", "--", "true"], 125, "at least 4M"),
      (["run", "--limit", "auto", "--", "true"], 125, "not available yet"),
      (["run", "--limit", "99999999999G", "--", "true"], 125, "more than this machine can address"),
      (["run", "--pool-limit", "-1", "--", "true"], 125, "--pool-limit"),
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
    #expect(try run("vswapctl", socket + ["limit", "a", "none"]).status == 0)
    #expect(try run("vswapctl", socket + ["detach", "7"]).output == "restored 1 page (4.0 KiB)\n")
    #expect(
      served.plane.calls == [
        .evict(.group("red-7"), 1 << 20), .restore(.pid(7)), .setLimit("a", 64 << 20), .setLimit("a", nil),
        .detach(7),
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
    #expect(
      try run("vswapctl", ["--socket", served.socketPath, "run", "--", "sh", "-c", "kill -9 $$"]).status
        == 137)
    let clash = try run(
      "vswapctl", ["--socket", served.socketPath, "run", "--pool-limit", "8M", "--", "true"])
    #expect(clash.status == 125)
    #expect(clash.errors == "vswapctl: --pool-limit is the running daemon's; use --embedded\n")
  }
}
