"""The URL of an S3 bucket taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.net.tls import FILES, Tls
from protocol.errors import ConfigError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OPTIONS = frozenset({"region", "deadline", *FILES})


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Url:
    """Where a bucket is and as whom to use it; its text and repr hold no credentials."""

    host: str
    port: int
    endpoint: str
    """Host and port as they were written: they are part of what is signed."""
    bucket: str
    encrypted: bool
    files: Tls
    region: str
    deadline: float
    """Seconds."""
    access_key: str = field(repr=False)
    """Empty where the URLs are signed by another party."""
    secret_key: str = field(repr=False)

    @property
    def http(self) -> str:
        """The bucket as HTTP addresses it."""
        return f"{'https' if self.encrypted else 'http'}://{self.endpoint}/{self.bucket}"

    def __str__(self) -> str:
        return f"{'s3s' if self.encrypted else 's3'}://{self.endpoint}/{self.bucket}"


def parse_s3_url(url: str, tls: Tls | None = None, *, environ: Mapping[str, str]) -> S3Url:
    """Take apart `s3(s)://[KEY:SECRET@]host[:port]/bucket[?option=value&…]`.

    Options: `region`, `deadline` (seconds one call may take) and, for s3s, `cacertfile` (default: the system's
    authorities), `certfile` and `keyfile`; if the URL names no file, those of `tls` are taken. Credentials come from
    the URL or from FLEDGE_S3_ACCESS_KEY and FLEDGE_S3_SECRET_KEY in `environ`.

    Raises:
        ConfigError: says what is wrong without repeating the credentials.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError("store URL: the host in brackets is not an IPv6 address") from error
    endpoint = parts.netloc.rpartition("@")[2]
    shown = f"store URL '{parts.scheme}://{endpoint}{parts.path}'"
    bucket = parts.path.strip("/")
    if parts.scheme not in ("s3", "s3s") or not parts.hostname or not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{shown}: write s3://KEY:SECRET@host:port/bucket (s3s:// for TLS)")
    encrypted = parts.scheme == "s3s"
    try:
        port = parts.port or (443 if encrypted else 80)
    except ValueError as error:
        raise ConfigError(f"{shown}: the port has to be a number") from error
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ConfigError(f"{shown}: unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
    files = {FILES[name]: options[name] for name in FILES if name in options}
    if files and not encrypted:
        raise ConfigError(f"{shown}: certificate files need s3s://")
    if "key" in files and "cert" not in files:
        raise ConfigError(f"{shown}: keyfile without certfile")
    return S3Url(
        host=parts.hostname,
        port=port,
        endpoint=endpoint,
        bucket=bucket,
        encrypted=encrypted,
        files=Tls(**files) if files else tls or Tls(),
        region=options.get("region", "us-east-1"),
        deadline=_seconds(shown, options.get("deadline", "120")),
        access_key=unquote(parts.username or "") or environ.get("FLEDGE_S3_ACCESS_KEY", ""),
        secret_key=unquote(parts.password or "") or environ.get("FLEDGE_S3_SECRET_KEY", ""),
    )


def _seconds(shown: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 86_400.0:
        raise ConfigError(f"{shown}: deadline {text!r} must be seconds between 0 and a day")
    return value
