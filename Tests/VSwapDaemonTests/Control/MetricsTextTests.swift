import Testing

@testable import VSwapDaemon

@Suite("Metrics")
struct MetricsTextTests {
  private let lines = MetricsText.render(FakeControlPlane().status()).split(separator: "\n").map(String.init)

  @Test(
    "samples",
    arguments: [
      #"vswap_pswpout_total{group="red\"is-7"} 5"#, #"vswap_pswpin_total{group="red\"is-7"} 4"#,
      #"vswap_group_limit_bytes{group="red\"is-7"} 67108864"#, #"vswap_group_limit_auto{group="red\"is-7"} 0"#,
      #"vswap_group_dictionary_bytes{group="red\"is-7"} 90000"#, "vswap_pool_full 1",
      "vswap_uptime_seconds 1.5", #"vswap_area_size_bytes{path="/var/swap 0"} 2147483648"#,
      #"vswap_area_read_errors_total{path="/var/swap 0"} 1"#, #"vswap_area_active{path="/var/swap 0"} 1"#,
      "# TYPE vswap_area_write_errors_total counter", "# TYPE vswap_area_used_bytes gauge",
      "vswap_cache_pages 6", "# TYPE vswap_pswpin_total counter", "# TYPE vswap_pool_objects gauge",
    ])
  func samples(line: String) {
    #expect(lines.contains(line))
  }

  @Test("every name has one HELP and one TYPE, in front of its samples")
  func heads() {
    var known: Set<Substring> = []
    for (help, type) in zip(lines, lines.dropFirst()) where help.hasPrefix("# HELP ") {
      let name = help.split(separator: " ")[2]
      #expect(type.hasPrefix("# TYPE \(name) "))
      #expect(known.insert(name).inserted)
    }
    for line in lines where !line.hasPrefix("#") {
      #expect(known.contains(line.prefix { $0 != "{" && $0 != " " }))
    }
  }

  @Test("over HTTP")
  func served() throws {
    let reply = try ServedPlane().request("GET", "/metrics")
    #expect(reply.status == 200)
    #expect(reply.head.contains("Content-Type: text/plain; version=0.0.4"))
    #expect(reply.body.hasSuffix("\n"))
  }
}
