"""Any request of S3's, signed as any identity: also those that no client library sends."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

import urllib3

_CODE = re.compile(rb"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    code: str
    """S3's word for an error."""
    body: bytes = field(repr=False)


class Caller:
    """Sends requests as one identity, or as nobody."""

    def __init__(self, pool: urllib3.PoolManager, host: str, access_key: str = "", secret_key: str = "") -> None:
        """`host` is host:port, `pool` knows the certificates; without keys nothing is signed."""
        self._pool = pool
        self._host = host
        self._access_key = access_key
        self._secret_key = secret_key

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request, every header of it signed."""
        path = quote(path)
        asked = "&".join(f"{quote(key, '')}={quote(value, '')}" for key, value in sorted((query or {}).items()))
        signed = {
            "host": self._host,
            "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
            "x-amz-date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
            **(headers or {}),
        }
        if self._access_key:
            signed["authorization"] = self._authorization(method, path, asked, signed)
        url = f"https://{self._host}{path}" + (f"?{asked}" if asked else "")
        answer = self._pool.request(method, url, body=body or None, headers=signed, redirect=False, retries=False)
        found = _CODE.search(answer.data)
        return Reply(answer.status, found[1].decode() if found else "", answer.data)

    def _authorization(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
        """AWS's signature, version 4."""
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
        moment = headers["x-amz-date"]
        scope = f"{moment[:8]}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self._secret_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
