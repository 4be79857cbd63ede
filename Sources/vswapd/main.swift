import Glibc

exit(DaemonCommand.invoke(Array(CommandLine.arguments.dropFirst())))
