import CUserfault
import Glibc

/// Segments by io_uring.
final class UringStorage: SegmentStorage, @unchecked Sendable {
  let depth: Int
  private let files: AreaFiles
  private let mapping: UnsafeMutableRawPointer
  private let mappingLength: Int
  private let memory: UnsafeMutableRawPointer
  private let ring: Uring
  private var seen: UInt64 = 0
  private var underWay = 0
  /// Reads are told to the kernel together, as late as possible: it makes one large request of adjacent ones.
  private var hasQueued = false
  /// Operations that the ring could not take.
  private var failed: [Int] = []

  init(files: AreaFiles, depth: Int) throws(KernelError) {
    self.files = files
    self.depth = depth
    let length = depth * AreaPlace.segmentBytes
    mappingLength = length + Self.hugePage
    guard let mapping = mmap(nil, mappingLength, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
      mapping != MAP_FAILED
    else { throw .last("mmap") }
    self.mapping = mapping
    memory = mapping + (Self.hugePage - Int(bitPattern: mapping) % Self.hugePage) % Self.hugePage
    // A request of many small pieces costs the kernel and the device more. Where there are no huge pages it works without.
    if length >= Self.hugePage { _ = madvise(memory, length, MADV_HUGEPAGE) }
    do {
      ring = try Uring.create(entries: depth, files: AreaPlace.maximumAreas, buffer: memory, length: length)
    } catch {
      munmap(mapping, mappingLength)
      throw error
    }
  }

  private static let hugePage = 2 << 20

  deinit {
    while completed(wait: true) != nil {}
    ring.destroy()
    munmap(mapping, mappingLength)
  }

  func buffer(_ index: Int) -> UnsafeMutableRawPointer { memory + index * AreaPlace.segmentBytes }

  func write(area: Int, segment: UInt32, buffer: Int) { start(true, area, segment, buffer) }
  func read(area: Int, segment: UInt32, buffer: Int) { start(false, area, segment, buffer) }

  private func start(_ write: Bool, _ area: Int, _ segment: UInt32, _ index: Int) {
    let isQueued =
      (try? files.register(in: ring, seen: &seen)) != nil
      && ring.queue(
        write: write, file: area, buffer: buffer(index), length: AreaPlace.segmentBytes,
        offset: Int(segment) * AreaPlace.segmentBytes, token: UInt64(index))
    if isQueued {
      underWay += 1
      hasQueued = !write || !ring.submit()
    } else {
      failed.append(index)
    }
  }

  func readPieces(area: Int, segment: UInt32, buffer: Int) {
    let descriptor = files.descriptor(area)
    for piece in stride(from: 0, to: AreaPlace.segmentBytes, by: pageSize) {
      let place = self.buffer(buffer) + piece
      if pread(descriptor, place, pageSize, Int(segment) * AreaPlace.segmentBytes + piece) != pageSize {
        place.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
      }
    }
  }

  func completed(wait: Bool) -> (buffer: Int, outcome: SegmentOutcome)? {
    if hasQueued { hasQueued = !ring.submit() }
    if let index = failed.popLast() { return (index, .failed) }
    while underWay > 0 {
      if let (token, result) = ring.completed() {
        underWay -= 1
        return (Int(token), Self.outcome(Int(result)))
      }
      guard wait else {
        ring.submit()
        return nil
      }
      ring.submit(waitingFor: 1)
    }
    return nil
  }

  private static func outcome(_ result: Int) -> SegmentOutcome {
    switch result {
    case AreaPlace.segmentBytes: .complete
    case -Int(ENOSPC), -Int(EDQUOT): .noRoom
    default: .failed
    }
  }

  func refresh() { try? files.register(in: ring, seen: &seen) }

  func discard(area: Int, segment: UInt32) {
    let descriptor = files.descriptor(area)
    guard descriptor >= 0, files.discards(area) else { return }
    _ = fallocate(
      descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, Int(segment) * AreaPlace.segmentBytes, AreaPlace.segmentBytes)
  }
}
