/// The release that `vswapd --version`, `vswapctl --version` and the control API name.
public let vswapVersion = "0.1.0"
