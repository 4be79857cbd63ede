import CZstd
import Glibc

/// Makes a dictionary from sample pages, and finds out on others whether it pays.
///
/// Half of the samples train, taking turns with the other half, which judges. A small dictionary does: on heaps of redis, python and
/// node 8 KiB save as much as 32 or 64 KiB, compress faster, and stay in the CPU's cache beside the page. Its content saves the bytes;
/// its tables for the entropy coder save time, as they need not be built for each page. fastCover (ZDICT, after Liao, Petri, Moffat, Wirth,
/// "Effective construction of relative Lempel-Ziv dictionaries", WWW 2016) with segments of 1 KiB takes 4 ms for it; the search for
/// better parameters that ZDICT_trainFromBuffer makes takes 20 times as long and finds nothing better.
enum DictionaryTraining {
  /// Pages in all.
  static let samples = 256
  private static let half = samples / 2
  private static let length = 8192
  /// Less is not worth a dictionary: 90 KiB are paid for by what 2.2 MiB of objects save at 4 %, which a group has by its 6000th page as a
  /// rule; and with 128 pages to judge by, a gain of 1 or 2 % may be none.
  private static let leastPercent = 4.0
  /// A percent more must be saved for so many percent that a page takes longer, in the direction that suffers more. Level 1 of zstd
  /// instead of -1 would save 5 % for 43 % more time to unpack, and was found not to be worth it: this rule says so, too.
  private static let slownessPerPercent = 8.0

  /// Where the sample of that number (0 ..< `samples`) lies, in pages: trainers first.
  static func place(ofSample number: Int) -> Int { number / 2 + number % 2 * half }

  /// A dictionary of that number (1 ... 255) from `samples` pages. nil: it does not pay, or there is no memory for it.
  ///
  /// On the caller's thread: some 20 ms of CPU time, and up to 2 MiB while it lasts.
  static func train(_ pages: UnsafeRawPointer, number: UInt32) -> PageDictionary? {
    guard let dictionary = make(pages, number) else { return nil }
    guard let judge = Judge(pages: pages + half * pageSize, count: half) else {
      dictionary.destroy()
      return nil
    }
    defer { judge.destroy() }
    let (without, with) = (judge.measure(nil), judge.measure(dictionary))
    let percent = 100 - 100 * Double(with.bytes) / Double(max(1, without.bytes))
    let slowness = max(
      slower(with.compression, than: without.compression), slower(with.decompression, than: without.decompression))
    guard percent >= leastPercent + slowness / slownessPerPercent else {
      dictionary.destroy()
      return nil
    }
    return dictionary.saving(percent: percent)
  }

  /// In percent, 0 or more.
  private static func slower(_ time: Int, than other: Int) -> Double {
    max(0, 100 * Double(time) / Double(max(1, other)) - 100)
  }

  private static func make(_ pages: UnsafeRawPointer, _ number: UInt32) -> PageDictionary? {
    var parameters = ZDICT_fastCover_params_t()
    parameters.k = 1024
    parameters.d = 8
    parameters.f = 16
    parameters.accel = 1
    parameters.zParams.compressionLevel = Int32(Codec.level)
    parameters.zParams.dictID = number
    let content = UnsafeMutableRawPointer.allocate(byteCount: length, alignment: 8)
    defer { content.deallocate() }
    let sizes = [Int](repeating: pageSize, count: half)
    let made = ZDICT_trainFromBuffer_fastCover(content, length, pages, sizes, UInt32(half), parameters)
    guard ZDICT_isError(made) == 0 else { return nil }
    return PageDictionary.create(content, length: made)
  }

  /// Bytes and CPU nanoseconds that pages take.
  private struct Cost {
    var bytes = 0
    var compression = Int.max
    var decompression = Int.max
  }

  private struct Judge {
    let pages: UnsafeRawPointer
    let count: Int
    private let codec: Codec
    private let objects: UnsafeMutableRawPointer
    private let lengths: UnsafeMutablePointer<Int>
    private let page = UnsafeMutableRawPointer.allocate(byteCount: pageSize, alignment: 64)
    /// The fastest one counts: others may have taken the CPU's cache.
    private static let rounds = 3

    /// nil: there is no memory.
    init?(pages: UnsafeRawPointer, count: Int) {
      guard let codec = try? Codec.create() else { return nil }
      self.codec = codec
      self.pages = pages
      self.count = count
      objects = .allocate(byteCount: count * pageSize, alignment: 64)
      lengths = .allocate(capacity: count)
      lengths.initialize(repeating: 0, count: count)
    }

    func destroy() {
      codec.destroy()
      objects.deallocate()
      lengths.deallocate()
      page.deallocate()
    }

    func measure(_ dictionary: PageDictionary?) -> Cost {
      var cost = Cost()
      for _ in 0..<Self.rounds {
        let start = now()
        cost.bytes = compressAll(dictionary)
        let middle = now()
        decompressAll(dictionary)
        cost.compression = min(cost.compression, middle - start)
        cost.decompression = min(cost.decompression, now() - middle)
      }
      return cost
    }

    private func compressAll(_ dictionary: PageDictionary?) -> Int {
      var bytes = 0
      for index in 0..<count {
        let packed = codec.compress(pages + index * pageSize, with: dictionary)
        if let packed { (objects + index * pageSize).copyMemory(from: packed.bytes, byteCount: packed.length) }
        lengths[index] = packed?.length ?? pageSize
        bytes += lengths[index]
      }
      return bytes
    }

    private func decompressAll(_ dictionary: PageDictionary?) {
      for index in 0..<count where lengths[index] < pageSize {
        let isWhole = codec.decompress(objects + index * pageSize, length: lengths[index], into: page, with: dictionary)
        precondition(isWhole, "zstd does not read what it wrote")
      }
    }

    /// CPU time of this thread, in nanoseconds: the machine may be busy.
    private func now() -> Int {
      var time = timespec()
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
      return time.tv_sec * 1_000_000_000 + time.tv_nsec
    }
  }
}
