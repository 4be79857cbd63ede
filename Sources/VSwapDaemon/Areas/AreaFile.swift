import Glibc

struct AreaFile: Sendable {
  let path: String
  let isBlockDevice: Bool
  let descriptor: Int32
  let sizeBytes: Int
  let isDirect: Bool
  let identity: UInt64
  func close(removing: Bool) {
    Glibc.close(descriptor)
    if removing { unlink(path) }
  }
}
