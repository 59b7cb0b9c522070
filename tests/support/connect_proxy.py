"""A real CONNECT proxy as hospitals have them: credentials, a list of what may be reached, names only it resolves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

Address = tuple[str, int]
_OVER = (OSError, EOFError, asyncio.LimitOverrunError)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: for what, and what was answered."""

    target: str
    status: int


class ConnectProxy:
    """Listens on a port of its own; `routes` says what `host:port` may be asked for, and where that really is."""

    def __init__(
        self,
        routes: Mapping[str, Address],
        *,
        login: tuple[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """Start; `tls` holds the files of a certificate and its key, for TLS to the proxy itself."""
        self.routes = dict(routes)
        self.asked: list[Asked] = []
        self.bytes_up = 0
        self._login = login and base64.b64encode(":".join(login).encode()).decode()
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(*tls)
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="connect proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context), self._loop
        ).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def targets(self) -> set[str]:
        """What was asked for, whatever the answer."""
        return {each.target for each in self.asked}

    def cut(self) -> None:
        """Abort every open connection."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def close(self) -> None:
        """Stop listening and abort what is open."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(*_OVER):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, _, rest = head[0].partition(" ")
            target = rest.partition(" ")[0]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            status, words = self._judge(method, target, headers)
            self.asked.append(Asked(target, status))
            if status == 200:
                await self._tunnel(target, reader, writer)
            else:
                writer.write(f"HTTP/1.1 {status} {words}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        self._forget(writer)

    def _judge(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, str]:
        if self._login is not None and headers.get("proxy-authorization") != f"Basic {self._login}":
            return 407, 'Authenticate\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm="hospital"'
        if method != "CONNECT":
            return 405, "Method Not Allowed"
        return (200, "") if target in self.routes else (403, "Forbidden")

    async def _tunnel(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection(*self.routes[target])
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        self._open.add(far)
        writer.write(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: test\r\n\r\n")
        up = asyncio.create_task(self._copy(reader, far, up=True))
        await self._copy(far_reader, writer)
        up.cancel()
        self._forget(far)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool = False) -> None:
        with contextlib.suppress(*_OVER):
            while piece := await source.read(65536):
                self.bytes_up += len(piece) if up else 0
                sink.write(piece)
                await sink.drain()
        sink.close()

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        writer.close()
