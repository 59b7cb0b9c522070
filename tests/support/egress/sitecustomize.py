"""A hospital's firewall around one Python process: it reaches one address, and resolves no names.

Put this folder first in PYTHONPATH and the address (`host:port`) into ONLY_EGRESS; what is tried besides is refused and
noted in the file that EGRESS_REFUSED names.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def _firewall(host: str, port: int, noted: str) -> None:
    bound: list[Any] = []

    def refuse(what: str) -> None:
        with open(noted, "a", encoding="utf-8") as file:
            file.write(f"{what}\n")
        raise PermissionError(f"the firewall lets nothing out but {host}:{port}, not {what}")

    def its_own(address: tuple[Any, ...]) -> bool:
        """Whether a process calls itself, as pika does to wake its loop."""
        return any(socket.fileno() >= 0 and socket.getsockname() == address for socket in bound)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.bind":
            bound[:] = [socket for socket in bound if socket.fileno() >= 0] + [arguments[0]]
        elif event in ("socket.connect", "socket.sendto") and isinstance(address := arguments[1], tuple):
            if (address[0], address[1]) != (host, port) and not its_own(address):
                refuse(f"{event} {address}")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in (host, None):
            refuse(f"{event} {arguments[0]}")

    sys.addaudithook(hook)


if "ONLY_EGRESS" in os.environ:
    _host, _, _port = os.environ["ONLY_EGRESS"].rpartition(":")
    _firewall(_host, int(_port), os.environ["EGRESS_REFUSED"])
