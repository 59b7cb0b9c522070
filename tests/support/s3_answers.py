"""An S3 server that answers whatever a test wants, as no well-behaved one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

Answer = tuple[int, str, dict[str, str]]
"""Status, document, and headers."""
OK: Answer = (200, "", {})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the server got it."""

    line: str
    """`METHOD /path`."""
    headers: Mapping[str, str]
    """By names in lower case."""
    query: Mapping[str, str]
    body: bytes


def error(status: int, code: str, more: str = "", **headers: str) -> Answer:
    """An error in S3's words."""
    return status, f"<Error><Code>{code}</Code>{more}</Error>", {k.replace("_", "-"): v for k, v in headers.items()}


def listing(*keys: str) -> Answer:
    """A page with these keys, the last one."""
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    return 200, f"<ListBucketResult><Name>x</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>", {}


@contextmanager
def answering(
    answer: Callable[[Asked], Answer], deadline: float = 20, place: str = "clinics"
) -> Iterator[tuple[str, list[str]]]:
    """The URL of a store that answers by this function, and the line of everything that was asked."""
    lines: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path, _, query = self.path.partition("?")
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(f"{self.command} {path}", headers, dict(parse_qsl(query)), sent)
            lines.append(asked.line)
            status, text, more = answer(asked)
            body = b"" if self.command == "HEAD" else text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/xml", "Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    for method in ("GET", "PUT", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.serve)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"s3://key:secret@127.0.0.1:{server.server_port}/{place}?deadline={deadline}", lines
    finally:
        server.shutdown()
        server.server_close()
