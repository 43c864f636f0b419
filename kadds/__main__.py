"""`python -m kadds` is the command `kadds`."""

from kadds.cli.main import main

main()
