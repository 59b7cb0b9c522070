"""Any request of S3's, signed as any identity: also those that no client library sends."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from urllib.parse import quote, urlsplit

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
    """Sends requests as one identity, or as nobody, over one connection; the path is left as it is, dots and all."""

    def __init__(self, port: int, tls: ssl.SSLContext, access_key: str = "", secret_key: str = "") -> None:
        """Connect with the first request; without keys nothing is signed."""
        self._connection = HTTPSConnection("127.0.0.1", port, context=tls, timeout=30)
        self._host = f"127.0.0.1:{port}"
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
        path = quote(path, safe="/%")
        asked = "&".join(f"{quote(key, '')}={quote(value, '')}" for key, value in sorted((query or {}).items()))
        signed = {
            "host": self._host,
            "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
            "x-amz-date": _moment(datetime.now(UTC)),
            **(headers or {}),
        }
        if self._access_key:
            signed["authorization"] = authorization((self._access_key, self._secret_key), method, path, asked, signed)
        return self._exchange(method, f"{path}?{asked}" if asked else path, body, signed)

    def follow(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """One request by a URL that somebody signed."""
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return self._exchange(method, target, body, {"host": self._host, **(headers or {})})

    def post_form(self, path: str, key: str, data: bytes) -> Reply:
        """An upload as a browser's form makes it, by a policy that lets every key in."""
        now = datetime.now(UTC)
        scope = f"{now:%Y%m%d}/us-east-1/s3/aws4_request"
        fields = {
            "x-amz-algorithm": "AWS4-HMAC-SHA256",
            "x-amz-credential": f"{self._access_key}/{scope}",
            "x-amz-date": _moment(now),
        }
        conditions = [{"bucket": path.strip("/")}, ["starts-with", "$key", ""], *({k: v} for k, v in fields.items())]
        until = f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000Z}"
        policy = base64.b64encode(json.dumps({"expiration": until, "conditions": conditions}).encode()).decode()
        fields |= {"key": key, "policy": policy, "x-amz-signature": _sign(self._secret_key, scope, policy)}
        body, kind = urllib3.encode_multipart_formdata([*fields.items(), ("file", ("file", data, "text/plain"))])
        return self._exchange("POST", path, body, {"host": self._host, "content-type": kind})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        length = {"content-length": str(len(body))} if body or method in ("PUT", "POST") else {}
        self._connection.request(method, target, body or None, {**headers, **length})
        answer = self._connection.getresponse()
        data = answer.read()
        found = _CODE.search(data)
        return Reply(answer.status, found[1].decode() if found else "", data)


def authorization(keys: tuple[str, str], method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
    """AWS's signature, version 4, over all of these headers; `keys` are access key and secret."""
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
    moment = headers["x-amz-date"]
    scope = f"{moment[:8]}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = _sign(keys[1], scope, text)
    return f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"


def _sign(secret_key: str, scope: str, text: str) -> str:
    key = f"AWS4{secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def _moment(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%SZ}"
