import ArgumentParser
import VSwapAPI

/// The limit of a group as users write it.
enum LimitOption {
  /// Bytes.
  ///
  /// - Throws: `ValidationError` that begins with `name`, for anything but a size that a program can live
  ///   with.
  static func parse(_ text: String, for name: String) throws -> Int {
    if text == "auto" {
      throw ValidationError("\(name): 'auto' is not available yet; give a size, as in 64M")
    }
    do {
      return try ByteSize.parse(text, minimum: ByteSize.minimumLimit)
    } catch {
      throw ValidationError("\(name): \(error)")
    }
  }
}
