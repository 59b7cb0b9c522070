"""A mirror of a package index whose certificate comes from an authority of its own."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.certificates import make_authority, make_certificate


class Mirror:
    """An index with a certificate of an authority that nobody knows; it has nothing, but notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        """Make the authority in a folder and begin to listen."""
        make_authority(folder, "mirror")
        make_certificate(folder, "index", authority="mirror", usage="serverAuth")
        asked: list[str] = []

        class Nothing(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.asked = asked
        self.authority = folder / "mirror.pem"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "index.pem", folder / "index.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}/simple"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
