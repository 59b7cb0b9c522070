"""Opens a blob store by its URL."""

from __future__ import annotations

from broker.blobs.base import BlobStore
from broker.net.schemes import Connection, Scheme, Schemes
from broker.net.tls import Tls, check_plain


class _Memory(Scheme[BlobStore]):
    """This process only."""

    example = "memory:"

    def open(self, url: str, connection: Connection) -> BlobStore:
        from broker.blobs.memory import MemoryBlobs

        return MemoryBlobs.named(url)


class _File(Scheme[BlobStore]):
    """A directory."""

    example = "file:///dir"

    def check(self, url: str, *, insecure: bool) -> None:
        from broker.blobs.directory import directory_of

        directory_of(url)

    def open(self, url: str, connection: Connection) -> BlobStore:
        from broker.blobs.directory import FileBlobs

        return FileBlobs.from_url(url)


class _S3(Scheme[BlobStore]):
    """A bucket."""

    def check(self, url: str, *, insecure: bool) -> None:
        from broker.blobs.s3.url import parse_s3_url

        parsed = parse_s3_url(url, environ={})
        check_plain(f"store {parsed}", parsed.host, encrypted=parsed.encrypted, insecure=insecure)

    def open(self, url: str, connection: Connection) -> BlobStore:
        from broker.blobs.s3.store import S3Blobs

        return S3Blobs.from_url(url, insecure=connection.insecure, tls=connection.tls, proxy=connection.proxy)


STORES = Schemes[BlobStore](
    "fledge.stores", "store", {"memory": _Memory, "file": _File, "s3": _S3, "s3s": _S3}, BlobStore
)


def open_blobs(url: str, *, insecure: bool = False, tls: Tls | None = None, proxy: str | None = None) -> BlobStore:
    """Open the store a URL names: `memory:` (`memory:NAME` shares one), `file:///dir`, `s3(s)://…`.

    S3's URLs are `s3s://KEY:SECRET@host:port/bucket`, or `…/bucket/prefix` to keep everything below a prefix. The
    credentials may also come from the environment (`FLEDGE_S3_ACCESS_KEY`, `FLEDGE_S3_SECRET_KEY`); options are
    `?region=`, `?deadline=` (seconds) and, for s3s, `?cacertfile=` (a PEM file of authorities, or `system`),
    `?certfile=` and `?keyfile=`. A site without credentials uses `broker.blobs.s3.presigned`.

    Third parties register a `Scheme` in `fledge.stores`; the arguments are those of `Connection`.

    Raises:
        ConfigError: the scheme is unknown, the URL incomplete, a file unusable, or plain text not allowed.
    """
    return STORES.open(url, Connection(insecure=insecure, tls=tls, proxy=proxy))


def check_store_url(url: str, *, insecure: bool = False) -> None:
    """Object to a URL that `open_blobs` would not take; nothing is opened, and credentials may be missing.

    Raises:
        ConfigError: the scheme is unknown, the URL incomplete, or plain text not allowed.
    """
    STORES.check(url, insecure=insecure)
