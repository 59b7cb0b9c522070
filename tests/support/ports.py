"""Ports for servers of tests, none of which the kernel lends to others before the start; and waiting for a server."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

_FIRST, _SHARE, _SHARES = 12_000, 1_200, 16
"""Each test process takes ports of its own share, all of them below those that outgoing connections are given."""


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on just now; none is returned twice as long as the share lasts.

    A port that the kernel chooses (bind to 0) may be taken by an outgoing connection, or chosen for another test
    process, before the server that it is for has started; a server of several ports needs seconds for that.
    """
    return list(islice(_free, number))


def await_server(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 60.0) -> None:
    """Wait until the port answers; a process that ends before, or takes longer, is killed and its log told."""
    deadline = time.monotonic() + seconds
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait(timeout=30)
            raise RuntimeError(f"nothing answers on port {port}: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


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
