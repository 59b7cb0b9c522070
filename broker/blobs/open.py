"""Opens a blob store by its URL."""

from __future__ import annotations

from broker.blobs.base import BlobStore
from broker.net.tls import Tls, check_plain
from protocol.errors import ConfigError


def open_blobs(url: str, *, insecure: bool = False, tls: Tls | None = None, proxy: str | None = None) -> BlobStore:
    """Open the store a URL names: `memory:` (`memory:NAME` shares one), `file:///dir`, `s3(s)://KEY:SECRET@host:port/bucket`.

    For S3 the credentials may also come from the environment (`FLEDGE_S3_ACCESS_KEY`, `FLEDGE_S3_SECRET_KEY`); options
    are `?region=`, `?deadline=` (seconds) and, for s3s, `?cacertfile=` (a PEM file of authorities instead of the
    system's), `?certfile=` and `?keyfile=`. A site without credentials uses `broker.blobs.s3.presigned`.

    Args:
        insecure: allow plain text to other machines than this one.
        tls: the certificate files, where the URL names none.
        proxy: the proxy's URL; without it HTTPS_PROXY counts. NO_PROXY counts always.

    Raises:
        ConfigError: the scheme is unknown, the URL incomplete, a file unusable, or plain text not allowed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "memory":
        from broker.blobs.memory import MemoryBlobs

        return MemoryBlobs.named(url)
    if scheme == "file":
        from broker.blobs.directory import FileBlobs

        return FileBlobs.from_url(url)
    if scheme in ("s3", "s3s"):
        from broker.blobs.s3.store import S3Blobs

        return S3Blobs.from_url(url, insecure=insecure, tls=tls, proxy=proxy)
    raise _unknown(url)


def check_store_url(url: str, *, insecure: bool = False) -> None:
    """Object to a URL that `open_blobs` would not take; nothing is opened, and credentials may be missing.

    Raises:
        ConfigError: the scheme is unknown, the URL incomplete, or plain text not allowed.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "file":
        from broker.blobs.directory import directory_of

        directory_of(url)
    elif scheme in ("s3", "s3s"):
        from broker.blobs.s3.url import parse_s3_url

        parsed = parse_s3_url(url, environ={})
        check_plain(f"store {parsed}", parsed.host, encrypted=parsed.encrypted, insecure=insecure)
    elif scheme != "memory":
        raise _unknown(url)


def _unknown(url: str) -> ConfigError:
    # Everything before the last @ may be a password.
    return ConfigError(f"store URL {url.split('@')[-1]!r}: unknown scheme; known: memory:, file:///dir, s3://, s3s://")
