/// Bytes in a page; the daemon refuses to start on kernels with another size.
let pageSize = 4096

/// Pages below this can be served: 48-bit addresses. Programs may map above it by a hint where the CPU has page tables
/// of five levels; what they have there is left alone.
let addressablePages: UInt64 = 1 << 36

/// Pages that `bytes` bytes (0 ... Int.max) take, the last one perhaps in part. Never overflows.
func pages(covering bytes: Int) -> Int {
  bytes / pageSize + (bytes % pageSize > 0 ? 1 : 0)
}
