"""A run's folder on its way to the aggregator: packed, encrypted for the aggregator alone, and put into the store.

The model is never in memory as a whole, neither here nor where it is taken over.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import nacl.utils

from aggregator.pipeline.genesis import Genesis
from broker.blobs.base import BlobStore
from broker.blobs.transfer import ChunkUploads
from fledge.runs.code_archive import load_code
from fledge.runs.init_run import RUN_TOML, load_genesis, load_run
from protocol import limits
from protocol.cipher import Octets
from protocol.codec import encode, is_word
from protocol.envelope import Sealer
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.messages import Bundle, Kind
from protocol.registry import Registry
from protocol.topology import bundle_key

_PARALLEL = 4
_NAME = re.compile(r"^name[ \t]*=.*$", re.MULTILINE)


@dataclass(frozen=True)
class Packed:
    """A run as it goes up."""

    name: str
    config: bytes = field(repr=False)
    """`run.toml`."""
    code: bytes = field(repr=False)
    """The zip archive of the training code; empty if every site trains with code of its own."""
    genesis: Genesis = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the code in hex; empty without code."""
        return hashlib.sha256(self.code).hexdigest() if self.code else ""

    @cached_property
    def spec(self) -> bytes:
        return self.genesis.spec.to_bytes()

    @property
    def size(self) -> int:
        """Bytes of code, specification and version 0."""
        return len(self.code) + len(self.spec) + self.genesis.spec.model_length

    @property
    def bundle(self) -> Bundle:
        """What the record says of it."""
        return Bundle(config=self.config, code=len(self.code), spec=len(self.spec))

    def records(self) -> Iterator[bytes]:
        """All of it in records of 1 MiB."""
        return _records([self.code, self.spec], self.genesis.payload())


def pack(folder: Path, name: str = "") -> Packed:
    """Read a run's folder, as `fledge init-run` writes it; `name` is another name for the run.

    Raises:
        ConfigError: something is missing, wrong or too large; says what.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; make a run with `fledge init-run`")
    config = load_run(folder)
    raw = (folder / RUN_TOML).read_bytes()
    if name and name != config.name:
        raw = _renamed(folder / RUN_TOML, raw, name)
    if len(raw) > limits.CONFIG:
        raise ConfigError(f"{folder / RUN_TOML} has {len(raw)} bytes, at most {limits.CONFIG} are taken")
    return Packed(name=name or config.name, config=raw, code=load_code(folder), genesis=load_genesis(folder))


def send(
    packed: Packed,
    identity: Identity,
    federation: str,
    registry: Registry,
    store: BlobStore,
    *,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Encrypt a run for the aggregators, put it below the operator's prefix; gives its record's SHA-256 in hex.

    Args:
        progress: told how many bytes were encrypted so far, which is a few MiB ahead of the store.

    Raises:
        StoreError: the store does not take it.
    """
    sealer = Sealer(
        identity,
        Kind.BUNDLE,
        federation=federation,
        message_id=nacl.utils.random(16),
        run=packed.name,
        spec=packed.genesis.spec.digest,
        length=packed.size,
        suite=registry.suite,
    )
    key_of = partial(bundle_key, identity.name)
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload")
    try:
        uploads = ChunkUploads.to(store, key_of, pool, pending=_PARALLEL)
        writer, done = sealer.writer(uploads), 0
        for record in packed.records():
            writer.write(record)
            done += len(record)
            if progress is not None:
                progress(done)
        uploads.finish()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    record = sealer.finish(encode(packed.bundle), registry.members(Role.AGGREGATOR), writer.finish())
    name = hashlib.sha256(record).hexdigest()
    store.put(key_of(name), record)
    return name


def _records(first: Iterable[bytes], then: Iterable[Octets]) -> Iterator[bytes]:
    """The same bytes, cut anew."""
    pending = bytearray()
    for part in chain[Octets](first, then):
        pending += part
        while len(pending) >= limits.RECORD:
            yield bytes(memoryview(pending)[: limits.RECORD])
            del pending[: limits.RECORD]
    if pending:
        yield bytes(pending)


def _renamed(path: Path, raw: bytes, name: str) -> bytes:
    """The settings under another name; everything else, comments included, stays as it is."""
    if not is_word(name):
        raise ConfigError(f"{name!r} cannot name a run: use letters, digits and . _ : + -, at most 64")
    changed = _NAME.sub(f'name = "{name}"', raw.decode("utf-8"), count=1)
    before, after = tomllib.loads(raw.decode("utf-8")), tomllib.loads(changed)
    if after != {**before, "name": name}:
        raise ConfigError(f"{path}: its name cannot be replaced by itself; write name = {name!r} there")
    return changed.encode()
