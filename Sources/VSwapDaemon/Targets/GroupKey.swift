/// What tells groups apart. A name belongs to a user within a PID namespace: the same name of another user, or in another
/// container, is another group.
struct GroupKey: Hashable, Sendable {
  let user: UInt32
  /// Inode of /proc/PID/ns/pid.
  let namespace: UInt64
  let name: String

  /// Lists are in this order.
  var order: (String, UInt32, UInt64) { (name, user, namespace) }

  /// As people write it where the name alone is not enough.
  var text: String { "\(user):\(name)" }
  /// Where that is not enough either.
  var fullText: String { "\(user):\(namespace):\(name)" }
}

/// What groups are called in the status, and whom people mean by a name.
struct GroupNames: Sendable {
  /// The daemon's own, whose groups always have their plain name: nobody else can take it from them.
  let user: UInt32
  let namespace: UInt64

  private func isOwn(_ key: GroupKey) -> Bool {
    key.user == user && key.namespace == namespace
  }

  /// The shortest text that means this one of `keys` and no other.
  func text(for key: GroupKey, among keys: Set<GroupKey>) -> String {
    let namesakes = keys.filter { $0.name == key.name && $0 != key }
    if namesakes.isEmpty || isOwn(key) { return key.name }
    return namesakes.contains { $0.user == key.user } ? key.fullText : key.text
  }

  /// Those of `keys` that `text` means. More than one: it does not say enough.
  func find(_ text: String, among keys: some Sequence<GroupKey>) -> [GroupKey] {
    if let own = keys.first(where: { isOwn($0) && $0.name == text }) { return [own] }
    let qualified = keys.filter { $0.text == text || $0.fullText == text }
    return qualified.isEmpty ? keys.filter { $0.name == text } : qualified
  }

  /// The name in `text`, with which a process of `user` names a group of its own; nil: the text means another user's group. Names
  /// never begin with a number and a colon, which would make them look like that.
  static func name(in text: String, of user: UInt32) -> String? {
    let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, parts[0].allSatisfy({ $0.isASCII && $0.isNumber }) else { return text }
    guard parts[0] == String(user), name(in: String(parts[1]), of: .max) != nil else { return nil }
    return String(parts[1])
  }
}
