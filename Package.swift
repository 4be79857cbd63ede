// swift-tools-version: 6.2
import Foundation
import PackageDescription

let strict: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
]
/// Glibc hides O_DIRECT, memfd_create, fallocate, sched_setaffinity and ucred without it.
let gnu: [CSetting] = [.define("_GNU_SOURCE")]

/// The documentation plugin is for people who render the documentation; a build does not need it.
let documentation: [Package.Dependency] =
  ProcessInfo.processInfo.environment["VSWAP_DOCC"] == nil
  ? [] : [.package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.4.0")]

let package = Package(
  name: "vswapd",
  products: [
    .executable(name: "vswapd", targets: ["vswapd"]),
    .executable(name: "vswapctl", targets: ["vswapctl"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.80.0"),
  ] + documentation,
  targets: [
    .target(name: "CUserfault", cSettings: gnu),
    .target(name: "CVSwapWire"),
    .target(name: "CUring", cSettings: gnu, linkerSettings: [.linkedLibrary("uring")]),
    .systemLibrary(name: "CXXHash", pkgConfig: "libxxhash", providers: [.apt(["libxxhash-dev"])]),
    .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
    .target(name: "VSwapAPI", swiftSettings: strict),
    .target(
      name: "VSwapDaemon",
      dependencies: [
        "CUring", "CUserfault", "CVSwapWire", "CXXHash", "CZstd", "VSwapAPI",
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
      ],
      cSettings: gnu,
      swiftSettings: strict),
    .executableTarget(
      name: "vswapd",
      dependencies: [
        "VSwapDaemon",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .executableTarget(
      name: "vswapctl",
      dependencies: [
        "CUserfault", "VSwapAPI",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VSwapDaemonTests",
      dependencies: [
        "VSwapDaemon", "VSwapAPI", "CVSwapWire", "CUserfault",
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOEmbedded", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
      ],
      cSettings: gnu,
      swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6],
  cLanguageStandard: .gnu11
)
