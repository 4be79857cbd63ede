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
  /// Set in the daemon that `vswapctl run` starts for one command.
  public var embedded: EmbeddedHandles?
  /// Where a service manager wants to be told of the daemon's state, as NOTIFY_SOCKET says.
  public var notifySocket: String?

  public init(
    runtimeDirectory: String, poolLimitBytes: Int? = nil, swapAreas: [SwapSpecification] = [],
    embedded: EmbeddedHandles? = nil, notifySocket: String? = nil
  ) {
    self.runtimeDirectory = runtimeDirectory
    self.poolLimitBytes = poolLimitBytes
    self.swapAreas = swapAreas
    self.embedded = embedded
    self.notifySocket = notifySocket
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

/// The configuration file: a JSON object, which may have `//` comments and commas at the end of lists, such as `{"runtime_dir": "/run/vswapd", "pool_limit": "2G", "swap": [{"path": "/var/swap0",
/// "size": "8G"}]}`, each key optional.
public struct ConfigurationFile: Sendable, Equatable {
  public var runtimeDirectory: String?
  /// Bytes.
  public var poolLimitBytes: Int?
  public var swapAreas: [SwapSpecification]

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
  }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.strictContainer(keyedBy: CodingKeys.self)
    runtimeDirectory = try fields.decodeIfPresent(String.self, forKey: .runtimeDirectory)
    if let runtimeDirectory, !runtimeDirectory.hasPrefix("/") {
      throw fields.invalid(.runtimeDirectory, "must be an absolute path")
    }
    swapAreas = try fields.decodeIfPresent([SwapSpecification].self, forKey: .swapAreas) ?? []
    if let limit = try fields.decodeIfPresent(String.self, forKey: .poolLimit) {
      do {
        poolLimitBytes = try ByteSize.parse(limit, minimum: ByteSize.minimumPoolLimit)
      } catch {
        throw fields.invalid(.poolLimit, "must be a size: \(error)")
      }
    }
  }
}
