"""What the store must keep: every object that the journal still refers to; the rest may be collected."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from aggregator.domain.state import UpdateState
from aggregator.journal.history import History
from broker.blobs.base import BlobStore
from broker.blobs.garbage import Collected, collect
from protocol import limits, topology
from protocol.blob import Manifest
from protocol.envelope import verify
from protocol.keys import Participant, Role
from protocol.messages import Kind
from protocol.registry import Registry

_OURS = frozenset({Kind.VERSION, Kind.SPEC, Kind.STATE, Kind.CODE, Kind.CARD})
_GONE = frozenset({UpdateState.REJECTED, UpdateState.SUPERSEDED, UpdateState.RUN_ABORTED, UpdateState.RUN_ENDED})


class References:
    """Object keys that a journal needs: records, models, own streams, and updates that are or may be merged."""

    def __init__(self, history: History, federation: str, registry: Registry, aggregator: Participant) -> None:
        self._history = history
        self._federation = federation
        self._signers = {entry.participant.kid: entry.participant for entry in registry.entries}
        self._signers[aggregator.kid] = aggregator

    def signer(self, kid: bytes) -> Participant:
        """The participant that holds or held the key: what was accepted once stays accepted."""
        return self._signers[kid]

    def keys(self) -> set[str]:
        """All of them.

        Raises:
            WireError: a record in the journal does not verify.
        """
        return set(self._records()) | set(self._updates())

    def _records(self) -> Iterator[str]:
        history = self._history
        if (registry := history.registry_record()) is not None:
            yield topology.record_key(hashlib.sha256(registry).hexdigest())
        own = history.model_records()
        for run in map(history.run, history.names()):
            own += [run.spec_record(), *filter(None, [run.record().code_record])]
            for version in range(run.newest() + 1):
                own += [run.version_record(version), *run.state_records(version).values()]
        for raw in own:
            kind, manifest, _ = self._manifest(raw, _OURS)
            if kind != Kind.STATE:  # whose records are in the journal alone
                yield topology.record_key(hashlib.sha256(raw).hexdigest())
            key_of = topology.state_chunk if kind == Kind.STATE else topology.model_chunk
            for name in manifest.chunks:
                yield key_of(name.hex())

    def _updates(self) -> Iterator[str]:
        for raw, state in self._history.envelopes():
            if state not in _GONE:
                _, manifest, sender = self._manifest(raw, frozenset({Kind.UPDATE}))
                for name in manifest.chunks:
                    yield topology.update_chunk(sender, name.hex())

    def _manifest(self, raw: bytes, kinds: frozenset[Kind]) -> tuple[Kind, Manifest, str]:
        verified = verify(raw, self, federation=self._federation, kinds=kinds, limit=limits.STORED_RECORD)
        manifest = verified.manifest or Manifest(length=0, stream=b"", chunks=(), digest=b"")
        return verified.kind, manifest, verified.sender.name


def collect_garbage(store: BlobStore, references: set[str], registry: Registry, *, older_than_days: float) -> Collected:
    """Delete what nothing refers to and what is older than any upload and its announcement can take."""
    prefixes = ["models/", "state/", "records/"]
    prefixes += [f"up/{entry.name}/" for entry in registry.entries if entry.role == Role.SITE]
    prefixes += [f"bundles/{entry.name}/" for entry in registry.entries if entry.role == Role.OPERATOR]
    done = [collect(store, prefix, references, older_than_days=older_than_days) for prefix in dict.fromkeys(prefixes)]
    return Collected(count=sum(part.count for part in done), bytes=sum(part.bytes for part in done))
