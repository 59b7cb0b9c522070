"""A TCP proxy on localhost that stalls, refuses and cuts connections, to stand between a client and a real server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal

Mode = Literal["pass", "stall", "refuse"]


class FaultProxy:
    """Forwards `port` to `target_port`.

    `mode` may be set at any time: `pass` forwards, `stall` keeps connections open and forwards nothing, `refuse`
    closes new connections at once. `cut` resets every open connection, also in the middle of a message.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.forwarded = 0
        """Bytes passed on so far, both directions together."""
        self._mode: Mode = "pass"
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    @property
    def mode(self) -> Mode:
        """What happens to traffic now."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()

    def cut(self) -> None:
        """Reset every open connection."""
        with self._changed:
            doomed = list(self._open)
        for sock in doomed:
            _reset(sock)

    def cut_after(self, forwarded: int, timeout: float = 30.0) -> None:
        """Wait until `forwarded` bytes have passed in all, then cut."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.forwarded >= forwarded, timeout):
                raise TimeoutError(f"only {self.forwarded} of {forwarded} bytes passed within {timeout} s")
        self.cut()

    def close(self) -> None:
        """Stop listening and cut what is open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.mode = "refuse"
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._mode == "refuse":
                _reset(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
            except OSError:
                _reset(near)
                continue
            far.settimeout(None)
            with self._changed:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink), name="fault-pump", daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._changed:
                    self._changed.wait_for(lambda: self._mode != "stall")
                sink.sendall(data)
                with self._changed:
                    self.forwarded += len(data)
                    self._changed.notify_all()
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # close alone does not wake a thread that is reading
            sock.close()
        with self._changed:
            self._open -= {source, sink}


def _reset(sock: socket.socket) -> None:
    """Close with a TCP reset instead of a polite end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
