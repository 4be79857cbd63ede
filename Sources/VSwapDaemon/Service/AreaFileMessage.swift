import Glibc
import VSwapAPI

/// What people are told about a path that cannot be a swap area.
extension AreaFileError {
  /// One line: what is wrong and what to do.
  func message(path: String) -> String {
    switch self {
    case .unusablePath: "'\(path)' cannot be a swap area; give an absolute path"
    case .sizeMissing: "\(path) does not exist; say how large it is to be: --size SIZE"
    case .sizeOutOfRange, .sizeDiffers, .deviceTooSmall: "\(path) \(sizeProblem)"
    case .wrongKind(let kind): "\(path) is \(kind); a swap area is a file or a block device"
    case .inMemory(let name):
      "\(path) lies in memory (\(name)), where swapping to it frees none; choose a path on a disk"
    case .foreignFile:
      "\(path) is no swap area of vswapd; give a path that does not exist yet, or remove the file first"
    case .foreignDevice:
      "\(path) holds something that vswapd did not write; if it is not needed: dd if=/dev/zero of=\(path) bs=1M count=1"
    case .insecure: "\(path) belongs to another user or may be opened by one; remove it first, or chown and chmod 600 it"
    case .kernelSwap:
      "\(path) is swap of the kernel (see /proc/swaps); choose another path, or swapoff(8) and remove it first"
    case .deviceBusy: "\(path) is mounted or in use (see lsblk); unmount it, or choose another device"
    case .usedByDaemon: "another vswapd uses \(path); choose another path, or stop that daemon"
    case .known: "\(path) is a swap area already; see vswapctl swapon --show"
    case .inTheWay: "\(path) has just been made, or is a link that leads nowhere; remove it, or choose another path"
    case .removed: "\(path) has just been retired by another vswapd, and is gone; run this again with --size SIZE to make it anew"
    case .noSpace(let needed, let free):
      "there is not enough space for \(path): \(ByteSize.format(needed)) are needed and \(ByteSize.format(free)) free; "
        + "choose a smaller size or another disk"
    case .system(let error): "\(path) cannot be a swap area (\(error)); check the path and its permissions"
    }
  }

  /// What it is in the control API.
  var code: ControlError.Code {
    switch self {
    case .unusablePath, .sizeMissing, .sizeOutOfRange, .sizeDiffers, .deviceTooSmall, .wrongKind, .inMemory: .badRequest
    case .foreignFile, .foreignDevice, .insecure, .kernelSwap, .inTheWay, .removed, .noSpace: .notPossible
    case .deviceBusy, .usedByDaemon, .known: .busy
    case .system(let error): error.code == ENOENT || error.code == ENOTDIR ? .notFound : .failed
    }
  }

  private var sizeProblem: String {
    switch self {
    case .sizeOutOfRange(let bytes):
      "cannot be a swap area of \(ByteSize.format(bytes)); one has from \(ByteSize.format(AreaFile.sizes.lowerBound)) "
        + "to \(ByteSize.format(AreaFile.sizes.upperBound))"
    case .sizeDiffers(let actual):
      "is an area of \(ByteSize.format(actual)) that was left there; leave the size out to use it, or remove it first"
    case .deviceTooSmall(let actual): "has only \(ByteSize.format(actual)); choose a smaller size, or leave it out"
    default: ""
    }
  }
}
