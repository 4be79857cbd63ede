import CUserfault

/// Who may attach by itself. Whoever attaches gets a /dev/userfaultfd, whose contexts handle the faults of the kernel, too; that is a
/// right that most systems do not give to every user (vm.unprivileged_userfaultfd).
///
/// What a served program starts may attach as well, whatever user it has become: it has the pass of its group.
struct AttachPolicy: Sendable {
  /// The daemon's own, which may, as root may.
  let user: UInt32
  /// Its members may.
  let group: (id: UInt32, name: String)?
  let everyone: Bool

  func allows(_ peer: vs_peer, on connection: Int32) -> Bool {
    if everyone || peer.uid == user || peer.uid == 0 { return true }
    guard let group else { return false }
    return peer.gid == group.id || vs_peer_is_in_group(connection, group.id) == 1
  }

  /// One line for a program of that user.
  func refusal(of user: UInt32) -> String {
    let way = group.map { "add it to group \($0.name)" } ?? "see attach_group in its configuration"
    return "user \(user) may not use this daemon; \(way), or set attach_everyone there"
  }

  /// Whether somebody else than the daemon's own user may attach at all. What root starts may become another user.
  var isForOthers: Bool { everyone || group != nil || user == 0 }
}
