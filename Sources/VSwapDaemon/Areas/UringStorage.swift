import CUserfault
import Glibc

/// Segments by io_uring.
final class UringStorage: SegmentStorage, @unchecked Sendable {
  let depth: Int
  private let files: AreaFiles
  private let memory: UnsafeMutableRawPointer
  private let ring: Uring
  private var seen: UInt64 = 0
  private var underWay = 0
  /// Operations that the ring could not take.
  private var failed: [Int] = []

  init(files: AreaFiles, depth: Int) throws(KernelError) {
    self.files = files
    self.depth = depth
    let length = depth * AreaPlace.segmentBytes
    guard let memory = mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), memory != MAP_FAILED
    else { throw .last("mmap") }
    self.memory = memory
    do {
      ring = try Uring.create(entries: depth, files: AreaPlace.maximumAreas, buffer: memory, length: length)
    } catch {
      munmap(memory, length)
      throw error
    }
  }

  deinit {
    while completed(wait: true) != nil {}
    ring.destroy()
    munmap(memory, depth * AreaPlace.segmentBytes)
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
      ring.submit()
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

  func completed(wait: Bool) -> (buffer: Int, isComplete: Bool)? {
    if let index = failed.popLast() { return (index, false) }
    while underWay > 0 {
      if let (token, result) = ring.completed() {
        underWay -= 1
        return (Int(token), result == AreaPlace.segmentBytes)
      }
      guard wait else {
        ring.submit()
        return nil
      }
      ring.submit(waitingFor: 1)
    }
    return nil
  }

  func refresh() { try? files.register(in: ring, seen: &seen) }

  func discard(area: Int, segment: UInt32) {
    let descriptor = files.descriptor(area)
    guard descriptor >= 0 else { return }
    _ = fallocate(
      descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, Int(segment) * AreaPlace.segmentBytes, AreaPlace.segmentBytes)
  }
}
