"""`python -m fledge` is `fledge`."""

from fledge.cli.app import main

main()
