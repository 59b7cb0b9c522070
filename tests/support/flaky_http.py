"""An HTTP server that answers the first requests with an error and forwards the others to a real server."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyHttp:
    """Listens on `port`; `failures` requests get `status` and `body`, the rest goes to `target_port`."""

    def __init__(self, target_port: int, *, failures: int, status: int = 503, body: bytes = b"") -> None:
        self.failures = failures
        self.requests: list[str] = []
        """Every request as `METHOD /path`, in order of arrival."""
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock:
                    outer.requests.append(f"{self.command} {self.path}")
                    fail = outer.failures > 0
                    outer.failures -= fail
                if fail:
                    self._answer(status, "application/xml", body)
                    return
                link = http.client.HTTPConnection("127.0.0.1", target_port, timeout=10)
                link.request(self.command, self.path, sent, dict(self.headers))
                response = link.getresponse()
                self._answer(response.status, response.headers.get("Content-Type", ""), response.read())
                link.close()

            def _answer(self, code: int, kind: str, content: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        for method in ("GET", "PUT", "HEAD", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._serve)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="flaky-http", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
