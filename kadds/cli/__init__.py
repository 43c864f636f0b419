"""The command line: thin faces over app, one file a command or group of commands."""
