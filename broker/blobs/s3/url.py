"""The URL of an S3 bucket taken apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from broker.blobs.base import FOLDERS
from broker.net.redact import remember
from broker.net.tls import FILES, Tls
from broker.net.urls import split_url
from protocol.errors import ConfigError

SHAPE = "s3://KEY:SECRET@host:port/bucket[/prefix] (s3s:// for TLS)"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,62}/){0,8}")
_OPTIONS = frozenset({"region", "deadline", *FILES})
_REGION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
# Amazon's hosts, and the region that all but the oldest of them name.
_AMAZON = re.compile(
    r"(?:[a-z0-9.-]+\.)?s3(?:-[a-z]+)*(?:\.dualstack)?(?:\.([a-z0-9-]+))?(?:\.vpce)?\.amazonaws\.(?:com(?:\.cn)?|eu)"
)
# A URL as it is sent. Of anything else one parser leaves out what another one reads: line breaks, leading blanks.
_SENT = re.compile(r"[!-~]+")
_KEYS = re.compile(r"[!-~]*")
_ANYWHERE = ("s3.amazonaws.com", "s3.amazonaws.com.cn")
SYSTEM = "system"
"""As `cacertfile`: the machine's own authorities, whatever the configuration names for the federation's servers."""
DEFAULT_REGION = "us-east-1"
"""What servers with one place of their own are content with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Url:
    """Where a bucket is and as whom to use it; its text and repr hold no credentials."""

    host: str
    port: int
    endpoint: str
    """Host and port as they were written: they are part of what is signed."""
    bucket: str
    prefix: str
    """What every key in the bucket begins with: empty, or parts that end in a slash each."""
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

    @property
    def place(self) -> str:
        """The bucket, or `bucket/prefix`."""
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    def address(self, key: str) -> str:
        """The object as HTTP addresses it; the bucket always stands in the path, never in the host's name."""
        return f"{self.http}/{self.prefix}{key}"

    def addresses(self, url: str, key: str) -> bool:
        """Whether `url`, whatever its query, leads to the object and nowhere else."""
        return _SENT.fullmatch(url) is not None and _place(url) == _place(self.address(key))

    def __str__(self) -> str:
        return f"{'s3s' if self.encrypted else 's3'}://{self.endpoint}/{self.place}"


def parse_s3_url(url: str, tls: Tls | None = None, *, environ: Mapping[str, str]) -> S3Url:
    """Take apart `s3(s)://[KEY:SECRET@]host[:port]/bucket[/prefix][?option=value&…]`.

    Options: `region` (default: the one that a host of Amazon's names, us-east-1 elsewhere), `deadline` (seconds one
    call may take) and, for s3s, `cacertfile` (`system`: the machine's authorities), `certfile` and `keyfile`. If the
    URL names none of these files, those of `tls` are taken; without any, the machine's authorities are believed.
    Credentials come from the URL or from FLEDGE_S3_ACCESS_KEY and FLEDGE_S3_SECRET_KEY in `environ`.

    Raises:
        ConfigError: says what is wrong without repeating the credentials.
    """
    parts = split_url(url, "store URL")
    endpoint, shown = parts.endpoint, f"store URL '{parts}'"
    if parts.scheme not in ("s3", "s3s") or not parts.host:
        raise ConfigError(f"{shown}: write {SHAPE}")
    bucket, prefix = _bucket_and_prefix(shown, parts.path)
    encrypted = parts.scheme == "s3s"
    options = _options(shown, parts.query, encrypted=encrypted)
    files = {FILES[name]: options[name] for name in FILES if name in options}
    own = Tls(**(files | {"ca": None if files.get("ca") == SYSTEM else files.get("ca")})) if files else tls
    host, region = _region(shown, parts.host, options.get("region", ""))
    if host != parts.host:
        endpoint = f"{host}{endpoint[len(parts.host) :]}"
    access_key = parts.user or environ.get("FLEDGE_S3_ACCESS_KEY", "")
    secret_key = parts.password or environ.get("FLEDGE_S3_SECRET_KEY", "")
    remember(secret_key)
    if not _KEYS.fullmatch(access_key + secret_key):
        raise ConfigError(f"{shown}: access key or secret holds a character that no key has; is it a line break?")
    return S3Url(
        host=host,
        port=parts.port or (443 if encrypted else 80),
        endpoint=endpoint,
        bucket=bucket,
        prefix=prefix,
        encrypted=encrypted,
        files=own or Tls(),
        region=region,
        deadline=_seconds(shown, options.get("deadline", "120")),
        access_key=access_key,
        secret_key=secret_key,
    )


def _bucket_and_prefix(shown: str, path: str) -> tuple[str, str]:
    bucket, _, rest = path.strip("/").partition("/")
    prefix = f"{rest}/" if rest else ""
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{shown}: a bucket has 3 to 63 lower-case letters, digits, '.' and '-', not {bucket!r}: write {SHAPE}"
        )
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"{shown}: the prefix {rest!r} has to be at most eight parts of letters, digits, '.', '_' and '-',"
            f" joined by slashes: write {SHAPE}"
        )
    if taken := FOLDERS.intersection(prefix.split("/")):
        raise ConfigError(
            f"{shown}: no part of a prefix may be {min(taken)!r}, where another federation in this bucket may keep"
            " its own objects and sweeps; choose another word, such as the federation's name"
        )
    return bucket, prefix


def _options(shown: str, query: str, *, encrypted: bool) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ConfigError(f"{shown}: unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
    if not encrypted and FILES.keys() & options.keys():
        raise ConfigError(f"{shown}: certificate files need s3s://")
    if "keyfile" in options and "certfile" not in options:
        raise ConfigError(f"{shown}: keyfile without certfile")
    return options


def _region(shown: str, host: str, wanted: str) -> tuple[str, str]:
    """The host to call and the region to sign for; Amazon's hosts name one, and have to."""
    if wanted and not _REGION.fullmatch(wanted):
        raise ConfigError(f"{shown}: region {wanted!r} has to be one word, such as eu-central-1")
    amazon = _AMAZON.fullmatch(host)
    if amazon is None:
        return host, wanted or DEFAULT_REGION
    if host in _ANYWHERE and wanted:
        return host.replace("s3.", f"s3.{wanted}.", 1), wanted
    named = amazon[1]
    if not named:
        raise ConfigError(
            f"{shown}: Amazon keeps each bucket in one region, and this host names none; write the bucket's into the"
            " host, such as s3.eu-central-1.amazonaws.com"
        )
    if wanted and wanted != named:
        raise ConfigError(
            f"{shown}: the host is in {named!r} and ?region= says {wanted!r}; leave ?region= out, or write the host of"
            " the bucket's region"
        )
    return host, named


def _place(url: str) -> tuple[str, str | None, int | None, str, str | None]:
    """What a request is sent to; nothing at all if the URL cannot be read."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, parts.hostname, port, parts.path, parts.username
    except ValueError:
        return "", None, None, "", None


def _seconds(shown: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 86_400.0:
        raise ConfigError(f"{shown}: deadline {text!r} must be seconds between 0 and a day")
    return value
