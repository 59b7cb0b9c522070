"""`python -m fledge.cli` is `fledge`."""

from fledge.cli.app import main

main()
