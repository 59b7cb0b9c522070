"""A model on its way to an operator: its signed card checked, its chunks decrypted into a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aggregator.audit.export import write_file
from broker.blobs.base import BlobStore
from broker.blobs.transfer import read_blob
from protocol import limits
from protocol.blob import Manifest
from protocol.envelope import ContentKey, body, unlock, verify
from protocol.errors import Malformed, StateError
from protocol.keys import Identity
from protocol.messages import Card, Kind
from protocol.registry import Registry
from protocol.topology import model_chunk, record_key

CARD = ".json"
"""What the name of a model's file ends in where its card is."""
_PARALLEL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A published model whose card the aggregator signed and sealed for this operator."""

    card: Card
    run: str
    version: int
    manifest: Manifest
    key: ContentKey = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the file that is written, in hex."""
        return self.manifest.digest.hex()

    def facts(self) -> dict[str, object]:
        """The card in plain values, with what is signed beside it."""
        plain = asdict(self.card)
        measured = plain.pop("measurements")
        beside = {"run": self.run, "version": self.version, "bytes": self.manifest.length, "sha256": self.digest}
        return {**plain, **beside, "measurements": measured}


def read_card(store: BlobStore, record: str, identity: Identity, registry: Registry, federation: str) -> Model:
    """Get the record of this SHA-256 (hex) and check who signed it, and for whom.

    Raises:
        WireError: it is not a card of this federation's aggregator for this operator.
        StoreError: it cannot be got.
    """
    raw = store.get(record_key(record), limits.STORED_RECORD)
    # Only an aggregator that is a member now may sign cards.
    verified = verify(raw, registry, federation=federation, kinds=(Kind.CARD,), limit=limits.STORED_RECORD)
    key = unlock(verified, identity)
    if verified.manifest is None:
        raise Malformed("the card names no model; have it published again")
    core, card = verified.core, body(verified, Card, key)
    return Model(card=card, run=core.run, version=core.version, manifest=verified.manifest, key=key)


def save(model: Model, store: BlobStore, path: Path, progress: Callable[[int], None] | None = None) -> int:
    """Write the model to `path` and its card beside it (0600, complete or not at all); returns the model's bytes.

    Raises:
        StateError: one of the files exists already or cannot be written.
        WireError: the bytes are not those that were signed.
        StoreError: a chunk cannot be got.
    """
    beside = path.with_name(path.name + CARD)
    if beside.exists():
        raise StateError(f"{beside} exists already; choose another name or remove it")
    size = write_file(path, _records(model, store), progress=progress)
    write_file(beside, iter([_text(model.facts())]))
    return size


def _records(model: Model, store: BlobStore) -> Iterator[memoryview]:
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch")
    try:
        # The reader compares the whole plaintext with the digest that was signed before the last record is given out.
        reader = model.key.reader(model.manifest, digest=True)
        yield from read_blob(store, reader, model_chunk, pool=pool, ahead=_PARALLEL)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _text(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n"
