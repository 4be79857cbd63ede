import Glibc
import VSwapAPI

/// The library under a name that LD_PRELOAD can hold.
enum PreloadLink {
  /// `library` itself. Where ld.so(8) cannot read that, the path of a link to it in the runtime directory
  /// `directory`, whose daemon removes it when it ends.
  ///
  /// - Throws: ``LaunchRefusal`` where no link can be made.
  static func path(of library: String, in directory: String) throws(LaunchRefusal) -> String {
    if isReadable(library) { return library }
    let place = RuntimePaths.preloadDirectory(in: directory, for: library)
    let link = "\(place)/\(RuntimePaths.libraryName)"
    guard isReadable(link) else {
      throw LaunchRefusal(
        .notAttachable,
        "LD_PRELOAD can name neither \(library) nor a link in \(directory), for a space, colon or dollar sign; "
          + "use --embedded, or install one of them elsewhere")
    }
    guard isTrusted(directory) else {
      throw LaunchRefusal(
        .notAttachable,
        "LD_PRELOAD cannot name \(library), and \(directory) belongs to another user; use --embedded")
    }
    try make(link, to: library, in: place)
    return link
  }

  /// ld.so(8) separates LD_PRELOAD at spaces and colons, and expands $ORIGIN and the like.
  static func isReadable(_ path: String) -> Bool {
    !path.contains { $0.isWhitespace || $0 == ":" || $0 == "$" }
  }

  /// Whether nobody but root and this user can put another file in the place of one in `directory`.
  private static func isTrusted(_ directory: String) -> Bool {
    var facts = stat()
    return stat(directory, &facts) == 0 && (facts.st_uid == 0 || facts.st_uid == geteuid())
      && facts.st_mode & (S_IWGRP | S_IWOTH) == 0
  }

  /// Other runs may make the same one at the same time.
  private static func make(_ link: String, to library: String, in place: String) throws(LaunchRefusal) {
    if mkdir(place, 0o755) == 0 {
      // Processes of CMD that change their user must reach it, whatever this user's umask.
      guard chmod(place, 0o755) == 0 else { throw refusal(link) }
    } else if errno != EEXIST {
      throw refusal(link)
    }
    if symlink(library, link) != 0 && errno != EEXIST { throw refusal(link) }
    guard InstalledFile.absolute(link) == InstalledFile.absolute(library) else {
      throw LaunchRefusal(.notAttachable, "\(link) is something else than vswapd made; remove it")
    }
  }

  /// Reads errno: call it first.
  private static func refusal(_ link: String) -> LaunchRefusal {
    let reason = String(cString: strerror(errno))
    return LaunchRefusal(.notAttachable, "cannot make \(link), which LD_PRELOAD could name: \(reason)")
  }
}
