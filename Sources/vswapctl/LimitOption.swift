import ArgumentParser
import VSwapAPI

/// The limit of a group as users write it.
enum LimitOption {
  /// A size or `auto`.
  ///
  /// - Throws: `ValidationError` that begins with `name`, for anything but `auto` and a size that a program can
  ///   live with.
  static func parse(_ text: String, for name: String) throws -> MemoryLimit {
    if text == MemoryLimit.autoWord { return .auto }
    do {
      return .fixed(bytes: try ByteSize.parse(text, minimum: ByteSize.minimumLimit))
    } catch {
      throw ValidationError("\(name): \(error)")
    }
  }
}
