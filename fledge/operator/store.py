"""An operator's way to the store: with an identity of their own, or by URLs that the aggregator signs on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from broker.blobs.base import BlobStore
from broker.blobs.s3.presigned import Ask
from broker.net.urls import scheme_of
from fledge.connections import granted_store, store_of
from protocol.errors import ConfigError, Forbidden, StoreError
from protocol.messages import Grant, Request

if TYPE_CHECKING:
    from fledge.operator.config import OperatorConfig
    from fledge.operator.console import Arguments, Console

STORE = "FLEDGE_STORE"
_WAIT_S = 30.0
"""Seconds for one answer with URLs."""


@contextmanager
def open_store(
    config: OperatorConfig, base: Path, console: Console, environment: Mapping[str, str] = os.environ
) -> Iterator[BlobStore]:
    """Open the store that FLEDGE_STORE or else the configuration names, and close it at the end.

    Raises:
        ConfigError: neither does, or a file of the kit is wrong.
    """
    store = environment.get(STORE) or config.store
    if not store:
        raise ConfigError(
            f"this kit names no store: it was made before runs went up and models came down by it; have a new one made "
            f"(`fledge provision --reissue {console.name}`), or set {STORE} to the store's URL"
        )
    line = config.model_copy(update={"store": store})
    if scheme_of(store) in ("s3", "s3s") and config.access == "presigned" and "@" not in store:
        blobs = granted_store(line, base, console.name, ask_by(console), below="bundles")
        try:
            yield blobs
        finally:
            blobs.close()
        return
    with store_of(line, base, environment) as opened:
        yield opened


def ask_by(console: Console) -> Ask:
    """Ask for URLs by commands; as with every command, one thread at a time."""

    def ask(request: Request) -> Grant:
        urls: list[str] = []
        if request.puts:
            urls += _urls(console, "upload.urls", {"puts": tuple(name.hex() for name in request.puts)})
        if request.gets:
            urls += _urls(console, "download.urls", {"gets": request.gets})
        return Grant(message=bytes(16), head=b"", urls=tuple(urls), expires=0)

    return ask


def _urls(console: Console, command: str, arguments: Arguments) -> tuple[str, ...]:
    (answer,) = console.ask(command, arguments, timeout=_WAIT_S)
    if answer.ok:
        return tuple(map(str, answer.column("urls")))
    if answer.reason == "no_answer":
        raise StoreError(f"no URLs for the store: {answer.text}")
    if answer.reason == "not_possible":
        why = f" ({answer.text})" if answer.text else ""
        raise Forbidden(
            f"the aggregator signs no URLs for this store{why}; have a kit with credentials made (`access: "
            f"credentials` in project.yml), or set {STORE} to a URL that you can reach"
        )
    raise Forbidden(f"the aggregator gives no URLs for the store: {answer.why}")
