import Glibc

exit(ControlCommand.invoke(Array(CommandLine.arguments.dropFirst())))
