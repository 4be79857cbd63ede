import CUserfault
import FoundationEssentials
import Glibc
import VSwapAPI

/// What a daemon is to do, checked: the command line over the configuration file over the defaults.
public struct ServiceConfiguration: Sendable {
  /// Absolute path.
  public var runtimeDirectory: String
  /// Most memory the pool may occupy, in bytes; nil for the daemon's own choice.
  public var poolLimitBytes: Int?
  /// Swap areas from the start, in this order. Their paths are absolute.
  public var swapAreas: [SwapSpecification]
  /// The group whose members may attach beside the daemon's own user and root; nil: "vswapd", if there is such a group.
  public var attachGroup: String?
  /// Every user may attach.
  public var attachEveryone: Bool
  /// Processes of one user; nil for the daemon's own choice. Root and the daemon's own user are not bound, neither here.
  public var userProcesses: Int?
  /// Bytes that one user may have swapped out, counted as the programs see them; nil for the daemon's own choice.
  public var userSwappedBytes: Int?
  /// Set in the daemon that `vswapctl run` starts for one command.
  public var embedded: EmbeddedHandles?
  /// Where a service manager wants to be told of the daemon's state, as NOTIFY_SOCKET says.
  public var notifySocket: String?

  public init(
    runtimeDirectory: String, poolLimitBytes: Int? = nil, swapAreas: [SwapSpecification] = [],
    attachGroup: String? = nil, attachEveryone: Bool = false, userProcesses: Int? = nil, userSwappedBytes: Int? = nil,
    embedded: EmbeddedHandles? = nil, notifySocket: String? = nil
  ) {
    self.runtimeDirectory = runtimeDirectory
    self.poolLimitBytes = poolLimitBytes
    self.swapAreas = swapAreas
    self.attachGroup = attachGroup
    self.attachEveryone = attachEveryone
    self.userProcesses = userProcesses
    self.userSwappedBytes = userSwappedBytes
    self.embedded = embedded
    self.notifySocket = notifySocket
  }
}

extension ServiceConfiguration {
  /// What `user_processes` may be: numbers of address spaces are few.
  static let userProcessesRange = 1...4095

  /// What one user may have. `chunks`: of page tables, all that there are.
  func userQuota(chunks: Int) -> UserQuota {
    var quota = UserQuota()
    if let userProcesses { quota.processes = userProcesses }
    quota.chunks = chunks / 4
    quota.swappedPages = userSwappedBytes.map { $0 / pageSize }
    quota.user = geteuid()
    return quota
  }

  /// The group that is used when none is named.
  private static let usualGroup = "vswapd"

  /// Who may attach. An embedded daemon is for its own user alone.
  func attachPolicy() throws(StartupError) -> AttachPolicy {
    guard embedded == nil else { return AttachPolicy(user: geteuid(), group: nil, everyone: false) }
    let name = attachGroup ?? Self.usualGroup
    let found = vs_group_named(name)
    guard found >= 0 || attachGroup == nil else {
      throw StartupError(message: "attach_group: there is no group '\(name)'; make it with groupadd, or name another one")
    }
    let group = found >= 0 ? (id: UInt32(truncatingIfNeeded: found), name: name) : nil
    return AttachPolicy(user: geteuid(), group: group, everyone: attachEveryone)
  }
}

/// The pipes between an embedded daemon and the `vswapctl run` that started it.
public struct EmbeddedHandles: Sendable {
  /// Write end: "ready" and a newline once targets can attach, or one line that says why they never will.
  public var readyDescriptor: Int32
  /// Read end: reads end-of-file when vswapctl has gone; the daemon then leaves with its last target.
  public var lifelineDescriptor: Int32

  public init(readyDescriptor: Int32, lifelineDescriptor: Int32) {
    self.readyDescriptor = readyDescriptor
    self.lifelineDescriptor = lifelineDescriptor
  }
}

/// The configuration file: a JSON object, which may have `//` comments and commas at the end of lists, such as `{"runtime_dir": "/run/vswapd",
/// "pool_limit": "2G", "swap": [{"path": "/var/swap0", "size": "8G"}], "attach_group": "vswapd", "attach_everyone": false}`, each key optional.
public struct ConfigurationFile: Sendable, Equatable {
  public var runtimeDirectory: String?
  /// Bytes.
  public var poolLimitBytes: Int?
  public var swapAreas: [SwapSpecification]
  public var attachGroup: String?
  public var attachEveryone: Bool
  public var userProcesses: Int?
  /// Bytes.
  public var userSwappedBytes: Int?

  /// Longest file that is read, in bytes.
  private static let longest = 1 << 20

  /// - Throws: ``StartupError`` that names the file, and the key where there is one.
  public init(path: String) throws(StartupError) {
    let data = Data(RelaxedJSON.strict(try Self.content(path)))
    do {
      self = try JSONDecoder().decode(ConfigurationFile.self, from: data)
    } catch let error as DecodingError {
      throw StartupError(message: "\(path): \(error.explanation); correct the file")
    } catch {
      throw StartupError(message: "\(path): it is not valid JSON; correct the file")
    }
  }

  private static func content(_ path: String) throws(StartupError) -> [UInt8] {
    let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard file >= 0 else { throw unreadable(path) }
    defer { close(file) }
    var facts = stat()
    guard fstat(file, &facts) == 0 else { throw unreadable(path) }
    guard facts.st_mode & S_IFMT == S_IFREG, facts.st_size <= longest else {
      throw StartupError(message: "\(path) is no configuration file; check the path given with --config")
    }
    var length = 0
    let bytes = [UInt8](unsafeUninitializedCapacity: longest) { buffer, filled in
      length = Glibc.read(file, buffer.baseAddress, longest)
      filled = max(length, 0)
    }
    guard length >= 0 else { throw unreadable(path) }
    return bytes
  }

  /// Reads errno: call it first.
  private static func unreadable(_ path: String) -> StartupError {
    let reason = String(cString: strerror(errno))
    return StartupError(message: "\(path) cannot be read (\(reason)); check the path given with --config")
  }
}

extension ConfigurationFile: Decodable {
  enum CodingKeys: String, CodingKey, CaseIterable {
    case runtimeDirectory = "runtime_dir"
    case poolLimit = "pool_limit"
    case swapAreas = "swap"
    case attachGroup = "attach_group"
    case attachEveryone = "attach_everyone"
    case userProcesses = "user_processes"
    case userSwapped = "user_swapped"
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    runtimeDirectory = try fields.decodeIfPresent(String.self, forKey: .runtimeDirectory)
    if let runtimeDirectory, !runtimeDirectory.hasPrefix("/") {
      throw fields.invalid(.runtimeDirectory, "must be an absolute path")
    }
    swapAreas = try fields.decodeIfPresent([SwapSpecification].self, forKey: .swapAreas) ?? []
    attachGroup = try fields.decodeIfPresent(String.self, forKey: .attachGroup)
    if attachGroup?.isEmpty == true { throw fields.invalid(.attachGroup, "must be the name of a group") }
    attachEveryone = try fields.decodeIfPresent(Bool.self, forKey: .attachEveryone) ?? false
    userProcesses = try fields.wholeNumberIfPresent(forKey: .userProcesses)
    if let userProcesses, !ServiceConfiguration.userProcessesRange.contains(userProcesses) {
      let range = ServiceConfiguration.userProcessesRange
      throw fields.invalid(.userProcesses, "must be from \(range.lowerBound) to \(range.upperBound)")
    }
    poolLimitBytes = try Self.size(fields, .poolLimit)
    userSwappedBytes = try Self.size(fields, .userSwapped)
  }

  private static func size(_ fields: KeyedDecodingContainer<CodingKeys>, _ key: CodingKeys) throws -> Int? {
    guard let text = try fields.decodeIfPresent(String.self, forKey: key) else { return nil }
    do {
      return try ByteSize.parse(text, minimum: ByteSize.minimumPoolLimit)
    } catch {
      throw fields.invalid(key, "must be a size: \(error)")
    }
  }
}
