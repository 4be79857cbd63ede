import CUserfault
import CZstd
import Synchronization

/// zstd dictionaries: what the pages of one group have in common, trained from some of them when it pays.
///
/// A trivial handle; any thread may call anything but `create` and `destroy`. A *domain* is what shares a dictionary: the targets of a
/// group, named by the number of one of them. An object that was compressed with a dictionary says so itself: its frame carries the
/// dictionary's number, so it may move between pool and areas, and slot words know nothing of it.
///
/// ## Why every object can be unpacked for as long as somebody wants it
///
/// 1. A dictionary belongs to one domain from `train` to `end`, and `end` is called when the page tables of all its targets have been
///    destroyed. Until they come to an end the targets' numbers are the domain's: a number that a slot's owner word names is not given to
///    another domain while a page table of this one may name the slot. (`TargetRegistry` sees to both.)
/// 2. `compressOldest` holds a reference to a slot, so the slot is in one life. If a page table names it when its word is exchanged, that
///    domain has lived all the while, because nothing but a fork in the same domain gives a page table a slot that it did not have; so
///    owner word, domain and dictionary, looked up in between, are of one domain. If none does, the object is freed with the worker's
///    reference and nobody ever reads it.
/// 3. So a page table's object needs the dictionary of its own domain, or none. Who unpacks without a page table's leave (a swapoff's or
///    a read ahead's worker) may find that the dictionary has gone, or even that its number is another one's by now. What it unpacks
///    is thrown away in any case: a page is mapped only if a page table still names the slot, under the lock of its pager.
/// 4. `borrow` and `giveBack` count who uses a dictionary in the same word that says whether it is live. A borrower that finds it live
///    is counted before `end` clears that bit, and memory is freed when the bit is clear and the count has been 0 since: who comes later
///    sees the cleared bit. zstd reads any bytes without harm, with any dictionary.
struct Dictionaries: @unchecked Sendable {
  /// Target numbers are below this.
  static let targets = 8192
  /// Dictionaries there can be at a time, numbered from 1. What a frame has room for in one byte is 255; this bounds the memory, 6 MiB.
  static let capacity = 63
  /// Domains whose pages are sampled at a time: 1 MiB each while it lasts.
  private static let collections = 4
  /// Pages that compress until the first sample: smaller groups cost nothing.
  static let firstSample = 1024
  /// One in so many is a sample: odd, since pages leave in the order of their addresses, and an allocator's blocks are powers of two. With
  /// 256 of them the last one is page 5359 of a group.
  static let sampleInterval = 17
  /// A domain that was refused is tried again, once, after so many times as many pages.
  private static let retryFactor = 16
  /// A collection that has got nothing for so long, in nanoseconds, makes room for another one.
  private static let collectionPatience: UInt64 = 10_000_000_000

  /// Per target number; the last three for the domain of that number.
  private struct Record: ~Copyable {
    /// 0: none.
    let domain: Atomic<UInt32>
    /// 0: none. Set once in the domain's life.
    let dictionary: Atomic<UInt32>
    /// Pages that compress, seen so far.
    let pages: Atomic<Int>
    /// The page after which counting for samples begins.
    let origin: Atomic<Int>
  }

  private struct Place: ~Copyable {
    /// Whether it is live (`liveBit`), and who uses it.
    let users = Atomic<UInt32>(0)
    /// Written before it is live, and when nobody uses it any more.
    var dictionary: PageDictionary?
    /// Under the lock: taken for a training or a dictionary.
    var isTaken = false
  }

  private static let liveBit: UInt32 = 1 << 31

  /// Samples of one domain. Under the lock, the content not while `isTraining`.
  private struct Collection {
    var samples: Mapping?
    /// 0: free, or what is trained is not wanted any more.
    var domain: UInt32 = 0
    var count = 0
    var latest: UInt64 = 0
    var isTraining = false

    var isComplete: Bool { count == DictionaryTraining.samples && !isTraining }
  }

  /// What a dictionary takes and saves.
  struct Figures: Equatable, Sendable {
    /// RAM.
    var bytes: Int
    /// Of the bytes that the samples took without it.
    var savesPercent: Double
  }

  private let records: Mapping
  private let places: UnsafeMutablePointer<Place>
  private let sampling: UnsafeMutablePointer<Collection>
  /// Complete collections that nobody trains yet, and dictionaries that wait for their last user.
  private let work: UnsafeMutablePointer<Atomic<Int>>
  private let lock: Lock

  // MARK: Life

  /// Takes no RAM to speak of until a group is large enough. Throws what memfd_create, ftruncate or mmap say.
  static func create() throws(KernelError) -> Dictionaries {
    let records = try Mapping.create(name: "vswapd-dictionaries", length: targets * MemoryLayout<Record>.stride)
    let places = UnsafeMutablePointer<Place>.allocate(capacity: capacity + 1)
    for index in 0...capacity { (places + index).initialize(to: Place()) }
    let sampling = UnsafeMutablePointer<Collection>.allocate(capacity: collections)
    sampling.initialize(repeating: Collection(), count: collections)
    let work = UnsafeMutablePointer<Atomic<Int>>.allocate(capacity: 1)
    work.initialize(to: Atomic(0))
    return Dictionaries(records: records, places: places, sampling: sampling, work: work, lock: .create())
  }

  /// Frees everything. Nobody may use a dictionary or a copy of the handle any more.
  func destroy() {
    for index in 0...Self.capacity { places[index].dictionary?.destroy() }
    places.deinitialize(count: Self.capacity + 1)
    places.deallocate()
    for index in 0..<Self.collections { sampling[index].samples?.destroy() }
    sampling.deallocate()
    work.deinitialize(count: 1)
    work.deallocate()
    records.destroy()
    lock.destroy()
  }

  private func record(_ target: UInt32) -> UnsafeMutablePointer<Record> {
    assert(target < UInt32(Self.targets))
    return records.base.assumingMemoryBound(to: Record.self) + Int(target)
  }

  // MARK: Domains

  /// The pages of `target` (below 8192) belong to `domain` (1 ..< 8192) from now on, until that ends.
  func join(target: UInt32, domain: UInt32) {
    record(target).pointee.domain.store(domain, ordering: .relaxed)
  }

  /// The page tables of all its targets have been destroyed. Its dictionary is freed as soon as nobody uses it.
  func end(domain: UInt32, targets: [UInt32]) {
    lock.lock()
    for target in targets { record(target).pointee.domain.store(0, ordering: .relaxed) }
    let number = record(domain).pointee.dictionary.exchange(0, ordering: .relaxed)
    record(domain).pointee.pages.store(0, ordering: .relaxed)
    record(domain).pointee.origin.store(0, ordering: .relaxed)
    for index in 0..<Self.collections where sampling[index].domain == domain { abandon(index) }
    if number != 0 {
      places[Int(number)].users.bitwiseAnd(~Self.liveBit, ordering: .acquiringAndReleasing)
      work.pointee.add(1, ordering: .relaxed)
      reclaim()
    }
    lock.unlock()
  }

  // MARK: Use

  /// The dictionary of that number (0 ... 255), to be given back. nil: there is none. Allocates nothing, waits for nobody.
  func borrow(_ number: UInt32) -> PageDictionary? {
    guard number > 0, number <= UInt32(Self.capacity) else { return nil }
    let place = places + Int(number)
    // Acquiring: pairs with the publication, and the count's own order keeps what follows behind it.
    let before = place.pointee.users.wrappingAdd(1, ordering: .acquiring).oldValue
    Interleaving.point()
    if before & Self.liveBit != 0, let dictionary = place.pointee.dictionary { return dictionary }
    giveBack(number)
    return nil
  }

  /// Takes back what `borrow` lent. Releasing: whoever frees it later does so after the use.
  func giveBack(_ number: UInt32) {
    Interleaving.point()
    places[Int(number)].users.wrappingSubtract(1, ordering: .releasing)
  }

  /// Number of the dictionary for new objects of a target; 0: none.
  func number(forTarget target: UInt32) -> UInt32 {
    let domain = record(target).pointee.domain.load(ordering: .relaxed)
    return domain == 0 ? 0 : record(domain).pointee.dictionary.load(ordering: .relaxed)
  }

  // MARK: Samples

  /// A page (4096 private bytes) of `target` that compresses was compressed without a dictionary. Now and then it becomes a sample.
  func saw(_ page: UnsafeRawPointer, ofTarget target: UInt32) {
    let domain = record(target).pointee.domain.load(ordering: .relaxed)
    guard domain != 0 else { return }
    let pages = record(domain).pointee.pages.add(1, ordering: .relaxed).newValue
    let number = pages - record(domain).pointee.origin.load(ordering: .relaxed) - Self.firstSample
    if number >= 0 && number % Self.sampleInterval == 0 { keep(page, target, domain) }
  }

  private func keep(_ page: UnsafeRawPointer, _ target: UInt32, _ domain: UInt32) {
    lock.lock()
    defer { lock.unlock() }
    // The domain may have ended, or got its dictionary.
    guard record(target).pointee.domain.load(ordering: .relaxed) == domain,
      record(domain).pointee.dictionary.load(ordering: .relaxed) == 0,
      let index = collection(of: domain), sampling[index].count < DictionaryTraining.samples,
      let samples = sampling[index].samples
    else { return }
    let place = DictionaryTraining.place(ofSample: sampling[index].count)
    (samples.base + place * pageSize).copyMemory(from: page, byteCount: pageSize)
    sampling[index].count += 1
    sampling[index].latest = vs_monotonic_ns()
    if sampling[index].isComplete { work.pointee.add(1, ordering: .relaxed) }
  }

  /// The domain's collection, or one that is free, or one that has got nothing for long.
  private func collection(of domain: UInt32) -> Int? {
    if let own = (0..<Self.collections).first(where: { sampling[$0].domain == domain }) { return own }
    let now = vs_monotonic_ns()
    let found = (0..<Self.collections).first {
      let other = sampling[$0]
      return !other.isTraining && !other.isComplete && (other.domain == 0 || now - other.latest > Self.collectionPatience)
    }
    guard let found else { return nil }
    if sampling[found].samples == nil {
      // Without memory the next sample tries again.
      let length = DictionaryTraining.samples * pageSize
      guard let samples = try? Mapping.create(name: "vswapd-samples", length: length) else { return nil }
      sampling[found].samples = samples
    }
    sampling[found].domain = domain
    sampling[found].count = 0
    return found
  }

  /// Under the lock. Its memory goes now, or when its training is over.
  private func abandon(_ index: Int) {
    if sampling[index].isComplete { work.pointee.subtract(1, ordering: .relaxed) }
    sampling[index].domain = 0
    if !sampling[index].isTraining { free(index) }
  }

  private func free(_ index: Int) {
    sampling[index].samples?.destroy()
    sampling[index] = Collection()
  }

  // MARK: Training

  /// Whether `attend` would find something to do. Cheap.
  var needsAttention: Bool { work.pointee.load(ordering: .relaxed) > 0 }

  /// Frees dictionaries whose last user has gone, then trains one for each domain that has its samples together. Takes some 20 ms of CPU
  /// time for each.
  func attend() {
    lock.lock()
    reclaim()
    while let index = (0..<Self.collections).first(where: { sampling[$0].isComplete }) {
      sampling[index].isTraining = true
      work.pointee.subtract(1, ordering: .relaxed)
      guard let number = (1...Self.capacity).first(where: { !places[$0].isTaken }), let samples = sampling[index].samples else {
        refuse(index)
        continue
      }
      places[number].isTaken = true
      lock.unlock()
      let dictionary = DictionaryTraining.train(samples.base, number: UInt32(number))
      Interleaving.point()
      lock.lock()
      settle(index, dictionary, UInt32(number))
    }
    lock.unlock()
  }

  /// The end of a training: the domain has it from now on, unless it has ended meanwhile.
  private func settle(_ index: Int, _ dictionary: PageDictionary?, _ number: UInt32) {
    let domain = sampling[index].domain
    guard let dictionary, domain != 0 else {
      dictionary?.destroy()
      places[Int(number)].isTaken = false
      return refuse(index)
    }
    places[Int(number)].dictionary = dictionary
    // Not a store: who comes with an old object may be counted for a moment.
    places[Int(number)].users.bitwiseOr(Self.liveBit, ordering: .acquiringAndReleasing)
    record(domain).pointee.dictionary.store(number, ordering: .relaxed)
    free(index)
  }

  /// No dictionary: not before the domain has had many times as many pages, and never a second time.
  private func refuse(_ index: Int) {
    let domain = sampling[index].domain
    if domain != 0 {
      let pages = record(domain).pointee.pages.load(ordering: .relaxed)
      let isFirst = record(domain).pointee.origin.load(ordering: .relaxed) == 0
      record(domain).pointee.origin.store(isFirst ? Self.retryFactor * pages : Int.max / 2, ordering: .relaxed)
    }
    free(index)
  }

  /// Under the lock.
  private func reclaim() {
    for index in 1...Self.capacity where places[index].dictionary != nil {
      // Acquiring: after the last use. Who is counted from now on finds that it is not live.
      guard places[index].users.load(ordering: .acquiring) == 0 else { continue }
      places[index].dictionary?.destroy()
      places[index].dictionary = nil
      places[index].isTaken = false
      work.pointee.subtract(1, ordering: .relaxed)
    }
  }

  // MARK: Figures

  /// The dictionary that new objects of a target are compressed with.
  func figures(ofTarget target: UInt32) -> Figures? {
    lock.lock()
    defer { lock.unlock() }
    let number = number(forTarget: target)
    return number == 0 ? nil : places[Int(number)].dictionary?.figures
  }

  /// RAM of dictionaries, samples and tables, in bytes.
  var metadataBytes: Int {
    lock.lock()
    defer { lock.unlock() }
    var bytes = records.allocatedBytes()
    for index in 1...Self.capacity { bytes += places[index].dictionary?.figures.bytes ?? 0 }
    for index in 0..<Self.collections { bytes += sampling[index].samples?.allocatedBytes() ?? 0 }
    return bytes
  }
}
