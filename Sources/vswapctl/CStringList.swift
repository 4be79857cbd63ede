import Glibc

/// A list of C strings that ends with NULL, as execve(2) takes it.
struct CStringList: ~Copyable {
  private let pointers: UnsafeMutableBufferPointer<UnsafeMutablePointer<CChar>?>

  init(_ strings: [String]) {
    pointers = .allocate(capacity: strings.count + 1)
    for (index, string) in strings.enumerated() {
      pointers.initializeElement(at: index, to: strdup(string))
    }
    pointers.initializeElement(at: strings.count, to: nil)
  }

  deinit {
    for pointer in pointers { free(pointer) }
    pointers.deallocate()
  }

  /// Calls `body` with the list, which is valid only then.
  borrowing func withStart<Result>(
    _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> Result
  ) -> Result {
    body(UnsafePointer(pointers.baseAddress!))  // there is always the NULL
  }
}
