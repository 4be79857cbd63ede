import Glibc

@testable import VSwapDaemon

/// A page of memory for tests, and contents that are functions of a key.
struct TestPage {
  let bytes: UnsafeMutableRawPointer

  init() {
    bytes = .allocate(byteCount: pageSize, alignment: pageSize)
    bytes.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
  }

  func destroy() {
    bytes.deallocate()
  }

  /// Fills the page with the content of `key`. One key in 16 is a page of zeros, one is incompressible, the
  /// others compress to lengths of three kinds, so that a few size classes see all the traffic.
  func fill(key: UInt64) {
    var random = SeededRandom(seed: key)
    let kind = key % 16
    if kind == 0 {
      memset(bytes, 0, pageSize)
      return
    }
    let words = bytes.assumingMemoryBound(to: UInt64.self)
    let noise = kind == 1 ? 512 : 100 * Int(1 + kind % 3)
    for index in 0..<noise { words[index] = random.next() }
    for index in noise..<512 { words[index] = key }
  }

  /// Whether the page has the content of `key`; `scratch` is overwritten.
  func holds(key: UInt64, scratch: TestPage) -> Bool {
    scratch.fill(key: key)
    return memcmp(bytes, scratch.bytes, pageSize) == 0
  }
}

/// Runs `body` with the numbers 0 ..< count, each on a thread of its own, and waits for all.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  final class Start {
    let index: Int
    let body: @Sendable (Int) -> Void
    init(index: Int, body: @escaping @Sendable (Int) -> Void) {
      self.index = index
      self.body = body
    }
  }
  var threads: [pthread_t] = []
  for index in 0..<count {
    let start = Unmanaged.passRetained(Start(index: index, body: body))
    var thread = pthread_t()
    let status = pthread_create(
      &thread, nil,
      { argument in
        guard let argument else { return nil }
        let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
        start.body(start.index)
        return nil
      }, start.toOpaque())
    precondition(status == 0, "pthread_create failed")
    threads.append(thread)
  }
  for thread in threads { pthread_join(thread, nil) }
}
