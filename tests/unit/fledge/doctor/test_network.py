"""What the doctor says of a server's certificate: by handshakes with servers that really have such ones."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from broker.net.tls import Tls
from fledge.doctor.checks.network import Blocked, Way, walk
from fledge.doctor.findings import Server
from tests.support.certificates import make_authority, make_certificate


@contextmanager
def serving(folder: Path) -> Iterator[Way]:
    """The way to a server that shakes hands with `server.pem`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            with suppress(OSError):  # the end, when nothing listens any more
                while True:
                    sock, _ = listener.accept()
                    with closing(sock), suppress(OSError), context.wrap_socket(sock, server_side=True) as inside:
                        inside.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        server = Server(name="broker", host="127.0.0.1", port=port, encrypted=True, purpose="messages")
        try:
            yield Way(server=server, tls=Tls(ca=str(folder / "ca.pem")))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_certificate_that_only_older_pythons_take_is_named_for_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path, "ca")
    make_certificate(tmp_path, "server", authority="ca", usage="serverAuth", key_identifiers=False)
    default = ssl.create_default_context

    def strict(**named: Any) -> ssl.SSLContext:
        """As Python 3.13 has it, whichever this one is."""
        made = default(**named)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", strict)
    with serving(tmp_path) as way, pytest.raises(Blocked) as blocked:
        walk(way, [])
    finding = blocked.value.finding
    assert (finding.check, finding.code) == ("broker.tls", "not_to_standard")
    assert "Missing Authority Key Identifier" in finding.cause
    assert "3.12" in finding.advice
