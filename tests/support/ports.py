"""Ports for servers of tests: none that the kernel may lend to somebody else between the choice and the start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import count, islice

_FIRST, _SHARE, _SHARES = 12_000, 1_200, 16
"""Each test process takes ports of its own share, all of them below those that outgoing connections are given."""


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on just now; none is returned twice as long as the share lasts.

    A port that the kernel chooses (bind to 0) may be taken by an outgoing connection, or chosen for another test
    process, before the server that it is for has started; a server of several ports needs seconds for that.
    """
    return list(islice(_free, number))


def _ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw15").removeprefix("gw"))
    first = _FIRST + worker % _SHARES * _SHARE
    return (first + offset % _SHARE for offset in count(os.getpid()))


def _is_free(port: int) -> bool:
    try:
        for host in ("127.0.0.1", ""):
            socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


_free = filter(_is_free, _ports())
