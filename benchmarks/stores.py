"""The stores that benchmarks run over: a directory, or a private server that ends with them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STORES = ("file", "s3", "seaweed")
"""A directory, `rclone serve s3` without TLS, SeaweedFS with TLS and certificates as the compose file has it."""
STORE_HELP = "a directory, or a private server: rclone without TLS, SeaweedFS with TLS (default: %(default)s)"


@contextmanager
def store_url(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a store of this kind, whose files and logs lie below `folder`; whoever holds it may do everything."""
    if kind == "file":
        yield (folder / "store").as_uri()
        return
    if kind == "s3":
        from tests.support.s3 import S3Server

        plain = S3Server(folder / "objects", folder / "s3.log")
        try:
            yield plain.url("benchmark")
        finally:
            plain.stop()
        return
    from tests.support.ports import free_ports
    from tests.support.seaweed import Login, Provisioned, SeaweedServer

    federation = Provisioned(folder / "kits", free_ports(1)[0])
    login = federation.logins["benchmark"] = Login(secrets.token_hex(10), secrets.token_hex(20))
    told = json.loads(federation.identities.read_text(encoding="utf-8"))
    keys = {"accessKey": login.access_key, "secretKey": login.secret_key}
    told["identities"].append({"name": "benchmark", "credentials": [keys], "actions": ["Admin"]})
    federation.identities.write_text(json.dumps(told), encoding="utf-8")
    server = SeaweedServer(federation, folder / "objects", folder / "seaweed.log")
    try:
        yield federation.url("benchmark")
    finally:
        server.stop()
