"""The aggregator's own signed records (versions, specification, state streams, heads): made, opened, wrapped anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aggregator.pipeline.envelope_cache import EnvelopeCache, OpenEnvelope
from broker.blobs.base import BlobStore
from broker.blobs.transfer import ChunkUploads, read_blob, read_whole
from protocol import limits, topology
from protocol.blob import Manifest
from protocol.cipher import Octets
from protocol.envelope import ContentKey, Sealer, Trust, Verified, raw_body, reissue, seal, unlock, verify
from protocol.errors import Malformed
from protocol.keys import Identity, Participant, Role
from protocol.messages import Head, Kind, RunHead
from protocol.registry import Registry
from protocol.spec import ModelSpec, records


@dataclass(frozen=True, slots=True)
class Opened:
    """A record that verifies and is sealed for us."""

    verified: Verified
    key: ContentKey

    @property
    def blob(self) -> OpenEnvelope:
        """The record's blob.

        Raises:
            Malformed: it has none.
        """
        if self.verified.manifest is None:
            raise Malformed(f"a {self.verified.kind.name} record without a blob", "truncated")
        return OpenEnvelope(self.verified.sender.name, self.verified.manifest, self.key)


class Records:
    """Makes and opens the records of one run in the name of one aggregator; thread-safe."""

    def __init__(
        self,
        federation: str,
        run: str,
        identity: Identity,
        store: BlobStore,
        pool: ThreadPoolExecutor,
        opened: EnvelopeCache | None = None,
    ) -> None:
        """`opened`: what all runs of an aggregator share."""
        self.federation = federation
        self.run = run
        self.identity = identity
        self.store = store
        self.pool = pool
        self.opened = opened or EnvelopeCache()
        """What was opened lately, by its signed bytes."""

    # ---- opening

    def open(self, raw: bytes, registry: Registry, kind: Kind) -> Opened:
        """Verify a record of ours and unlock it.

        Raises:
            WireError: it is not ours, or not for us.
        """
        trust = _Ours(registry, self.identity)
        verified = verify(raw, trust, federation=self.federation, kinds={kind}, limit=limits.STORED_RECORD)
        return Opened(verified, unlock(verified, self.identity))

    def open_blob(self, raw: bytes, registry: Registry, kind: Kind) -> OpenEnvelope:
        """The blob of a record of ours, which is verified unless that was done lately.

        Raises:
            WireError: it is not ours, or not for us.
        """
        found = self.opened.get(raw)
        if found is None:
            found = self.open(raw, registry, kind).blob
            self.opened.put(raw, found)
        return found

    def open_update(self, raw: bytes, trust: Trust) -> OpenEnvelope:
        """The blob of a journalled update, which arrived too long ago to be remembered, or under an older registry.

        Raises:
            WireError: it is of no signer that `trust` knows, or not for us.
        """
        verified = verify(raw, trust, federation=self.federation, kinds={Kind.UPDATE})
        return Opened(verified, unlock(verified, self.identity)).blob

    def read(self, blob: OpenEnvelope, key_of: Callable[[str], str], *, digest: bool = False) -> Iterator[memoryview]:
        """The plaintext records of a record's blob, lent as `read_blob` does; `digest`: compare their hash too."""
        return read_blob(self.store, blob.key.reader(blob.manifest, digest=digest), key_of, pool=self.pool)

    def read_whole(self, blob: OpenEnvelope, key_of: Callable[[str], str]) -> bytes:
        """The plaintext of a small blob."""
        return read_whole(self.store, blob.key.reader(blob.manifest, digest=True), key_of, pool=self.pool)

    # ---- making

    def put_record(self, raw: bytes) -> bytes:
        """Store a signed record; returns its SHA-256."""
        digest = record_digest(raw)
        self.store.put(topology.record_key(digest.hex()), raw)
        return digest

    def write_spec(self, spec: ModelSpec, registry: Registry, message_id: bytes) -> bytes:
        """Seal the specification for all sites and store it; returns the record."""
        raw = spec.to_bytes()
        sealer = self.sealer(Kind.SPEC, message_id, spec, len(raw), registry)
        return self._publish(sealer, raw, registry)

    def write_code(self, code: bytes, registry: Registry, message_id: bytes) -> bytes:
        """Seal a run's code for all sites and store it; returns the record."""
        return self._publish(self.sealer(Kind.CODE, message_id, None, len(code), registry), code, registry)

    def _publish(self, sealer: Sealer, raw: bytes, registry: Registry) -> bytes:
        parts = (raw[index * limits.RECORD : (index + 1) * limits.RECORD] for index in range(records(len(raw))))
        return sealer.finish(b"", self.entitled(registry), self.upload(sealer, parts))

    def upload(self, sealer: Sealer, payload: Iterable[Octets]) -> Manifest:
        """Encrypt a payload's records and put them as chunks of models; durable on return."""
        uploads = self.output(topology.model_chunk)
        writer = sealer.writer(uploads)
        for record in payload:
            writer.write(record)
        manifest = writer.finish()
        uploads.finish()
        return manifest

    def sealer(
        self,
        kind: Kind,
        message_id: bytes,
        spec: ModelSpec | None,
        length: int,
        registry: Registry,
        *,
        version: int = 0,
    ) -> Sealer:
        """A sealer for one of our blobs; the registry says by which suite."""
        return Sealer(
            self.identity,
            kind,
            federation=self.federation,
            message_id=message_id,
            run=self.run,
            version=version,
            spec=b"" if spec is None else spec.digest,
            length=length,
            suite=registry.suite,
        )

    def output(self, key_of: Callable[[str], str]) -> ChunkUploads:
        """Where the chunks of a new blob go."""
        return ChunkUploads.to(self.store, key_of, self.pool)

    def entitled(self, registry: Registry) -> list[Participant]:
        """Who may read versions: every site, and the aggregator itself."""
        return [*registry.members(Role.SITE), self.identity.public]

    def rewrap(
        self,
        raw: bytes,
        registry: Registry,
        kind: Kind,
        change: Callable[[bytes], bytes],
        *,
        to: Sequence[Participant] | None = None,
    ) -> bytes:
        """The same record for the sites of a newer registry (or for others); `change` rewrites its body."""
        opened = self.open(raw, registry, kind)
        body = change(raw_body(opened.verified, opened.key))
        return reissue(opened.verified, opened.key, self.identity, body, to or self.entitled(registry))

    def head(
        self, number: int, now: int, registry: bytes, runs: Sequence[RunHead], message_id: bytes, *, lifetime: int
    ) -> bytes:
        """A signed head, in the clear: every member must be able to read it, whatever it is entitled to."""
        head = Head(number=number, issued=now, not_after=now + lifetime, registry=registry, runs=tuple(runs))
        return seal(
            self.identity, Kind.HEAD, head, (), federation=self.federation, message_id=message_id, sequence=number
        )


def record_digest(raw: bytes) -> bytes:
    """SHA-256 of a stored record, as heads name it."""
    return hashlib.sha256(raw).digest()


class _Ours:
    """Trust for records the aggregator reads back: its own key, even before or after the registry lists it."""

    def __init__(self, registry: Registry, identity: Identity) -> None:
        self._registry = registry
        self._identity = identity

    def signer(self, kid: bytes) -> Participant:
        """Ourselves, or the participant that the registry names (an aggregator that ran before us)."""
        return self._identity.public if kid == self._identity.kid else self._registry.signer(kid)
