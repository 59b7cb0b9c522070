"""The command line `fledge`."""

from fledge.cli.app import main

__all__ = ["main"]
