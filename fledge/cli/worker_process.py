"""A worker of the demo as a process of its own: `fledge`, which ends when its parent is gone, killed or not."""

from __future__ import annotations

import os
import threading


def _end_with_the_parent() -> None:
    """Read what is never written: it ends when the last process that could write, the one that started us, is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)  # at once, as if killed, too: a worker is made for it, and there is no one left to read its last words


def main() -> None:
    """`fledge` for as long as the process that started it lives."""
    from fledge.cli.app import main as fledge

    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()
    fledge()


if __name__ == "__main__":
    main()
