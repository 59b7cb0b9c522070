"""A TCP proxy with faults: it can stall, refuse and cut what goes through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self


class FaultProxy:
    """Listens on a port of its own and forwards to a target, until told to misbehave."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._answering = threading.Event()
        self._answering.set()
        self._refusing = False
        self._refuse_then = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._budget: int | None = None
        self._spent = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="fault proxy", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stall(self) -> None:
        """Keep connections open, and forward nothing."""
        self._flowing.clear()

    def hold_answers(self) -> None:
        """Forward what clients send, and nothing of what the server answers."""
        self._answering.clear()

    def refuse(self) -> None:
        """Reset what is open, and close every new connection at once."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Forward again."""
        self._refusing = False
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        """Reset every open connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            _reset(sock)

    def cut_after(self, count: int, *, refuse: bool = False) -> None:
        """Reset every open connection once `count` more bytes have been forwarded, both directions together.

        With `refuse` nobody who is cut comes back.
        """
        with self._lock:
            self._budget = count
            self._refuse_then = refuse
            self._spent.clear()

    def wait_cut(self, timeout: float) -> None:
        """Wait until an armed `cut_after` has happened."""
        if not self._spent.wait(timeout):
            raise TimeoutError(f"not enough was forwarded within {timeout} s")

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self._refusing = True
        # shutdown() wakes the thread in accept(); close() alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self._answering.set()
        self.cut()
        self._acceptor.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._target), 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink, gate in ((client, server, self._flowing), (server, client, self._answering)):
                threading.Thread(target=self._pump, args=(source, sink, gate), daemon=True).start()

    def _spends(self, count: int) -> bool:
        with self._lock:
            if self._budget is None:
                return False
            self._budget -= count
            if self._budget > 0:
                return False
            self._budget = None
            self._refusing |= self._refuse_then
            self._spent.set()
            return True

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                gate.wait()
                sink.sendall(data)
                if self._spends(len(data)):
                    self.cut()
        except OSError:
            pass
        for sock in (source, sink):
            with self._lock:
                self._sockets.discard(sock)
            _shut(sock)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _reset(sock: socket.socket) -> None:
    """Make the peer see a reset instead of an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return
    _shut(sock)
