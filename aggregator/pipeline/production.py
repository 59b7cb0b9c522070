"""From a plan to a product: read what the plan names, merge, store chunks and records. Nothing refers to them yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from aggregator.pipeline.envelope_cache import OpenEnvelope
from aggregator.pipeline.merge import RELEASED, Sinks, Sources, blank, merge
from aggregator.pipeline.records import Records
from aggregator.strategy.base import Strategy
from aggregator.strategy.plan import MergePlan, Product
from broker.blobs.transfer import read_blob
from broker.runtime.crash_points import crash_point
from protocol import topology
from protocol.codec import encode
from protocol.envelope import Sealer
from protocol.errors import StoreError, Untrusted, WireError
from protocol.keys import Participant, Role
from protocol.messages import Kind, State, Version
from protocol.registry import Registry
from protocol.spec import ModelSpec


class BadMember(WireError):
    """A member's blob no longer reads as it did at admission."""

    def __init__(self, id: bytes, cause: WireError | StoreError) -> None:
        reason = cause.reason if isinstance(cause, WireError) else "blob_missing"
        super().__init__(f"update {id.hex()[:8]}: {cause}", reason)
        self.id = id


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The signed bytes a plan reads, fetched by the thread that owns the database."""

    parent: bytes
    states: Mapping[str, bytes]
    """The parent version's own streams; empty at version 1."""
    envelopes: Sequence[bytes]
    """The members' envelopes, in order."""
    registry: Registry
    body: Version
    """The new record's body, except for `parent`, which the plan has."""


class Production:
    """Makes products of one run."""

    def __init__(
        self, records: Records, spec: ModelSpec, strategy: Strategy, cipher: ThreadPoolExecutor, *, average: bool
    ) -> None:
        """`average`: keep the released average beside the raw version."""
        self.records = records
        self.spec = spec
        self._strategy = strategy
        self._cipher = cipher
        self._average = average

    def sources(self, plan: MergePlan, inputs: Inputs) -> Sources:
        """Plaintext streams of everything a plan reads.

        Raises:
            WireError: a record does not open; `BadMember` for a member, also later while its stream is read.
        """
        records = self.records
        parent = records.open_blob(inputs.parent, inputs.registry, Kind.VERSION)
        own = {
            name: records.read(records.open_blob(raw, inputs.registry, Kind.STATE), topology.state_chunk)
            for name, raw in inputs.states.items()
        }
        old = records.read(parent, topology.model_chunk)
        again = records.read(parent, topology.model_chunk)
        return Sources(
            old=old,
            deltas=[
                self._delta(member.id, member.site, raw, inputs.registry)
                for member, raw in zip(plan.members, inputs.envelopes, strict=True)
            ],
            states=[own.get(name) or blank(self.spec) for name in self._strategy.state],
            # Before version 1 there is no average; its decay is 0 then, so what stands in does not matter.
            released=(own.get(RELEASED) or again) if self._average else None,
        )

    def _delta(self, id: bytes, site: str, raw: bytes, registry: Registry) -> Iterator[memoryview]:
        records = self.records
        try:
            blob = records.opened.get(raw) or records.open_update(raw, _Known(registry))
            key_of = partial(topology.update_chunk, site)
            reader = blob.key.reader(blob.manifest, digest=False)
            yield from read_blob(records.store, reader, key_of, pool=records.pool)
        except (WireError, StoreError) as error:
            raise BadMember(id, error) from error

    def produce(self, plan: MergePlan, inputs: Inputs) -> Product:
        """Merge, and store every chunk and record of the new version.

        Raises:
            BadMember: a member's blob is missing or changed.
            WireError, StoreError, TrainingError: the merge cannot be done now.
        """
        names = [*([RELEASED] if self._average else []), *self._strategy.state]
        lengths = [self.spec.model_length if name == RELEASED else self.spec.update_length for name in names]
        kinds = [(Kind.VERSION, self.spec.model_length), *((Kind.STATE, length) for length in lengths)]
        model, *others = (
            _Output(
                self.records,
                self.records.sealer(kind, id, self.spec, length, inputs.registry, version=plan.version),
                topology.model_chunk if kind == Kind.VERSION else topology.state_chunk,
            )
            for id, (kind, length) in zip(plan.ids, kinds, strict=False)
        )
        own = dict(zip(names, others, strict=True))
        merge(
            self.spec,
            plan,
            self._strategy,
            self.sources(plan, inputs),
            Sinks(
                model=model.write,
                states=[own[name].write for name in self._strategy.state],
                released=own[RELEASED].write if self._average else None,
            ),
            self._cipher,
        )
        ours = [self.records.identity.public]
        states = {name: output.finish(encode(State(stream=name, weight=1.0)), ours) for name, output in own.items()}
        entitled = self.records.entitled(inputs.registry)
        record = model.finish(encode(replace(inputs.body, parent=plan.parent)), entitled)
        self.records.put_record(record)
        return Product(digest=model.digest, record=record, states=states)


class _Output:
    """One new blob on its way into the store."""

    def __init__(self, records: Records, sealer: Sealer, key_of: Callable[[str], str]) -> None:
        self._records = records
        self._sealer = sealer
        self._uploads = records.output(key_of)
        self._writer = sealer.writer(self._uploads)
        self.digest = b""

    def write(self, record: memoryview) -> None:
        """Encrypt the next record."""
        crash_point("aggregator.merging")
        self._writer.write(record)

    def finish(self, body: bytes, recipients: Sequence[Participant]) -> bytes:
        """The signed record, once every chunk is durable."""
        manifest = self._writer.finish()
        self._uploads.finish()
        self.digest = manifest.digest
        record = self._sealer.finish(body, recipients, manifest)
        self._records.opened.put(record, OpenEnvelope(self._records.identity.name, manifest, self._sealer.key))
        return record


class _Known:
    """Trust for journalled updates: their signatures were checked when they arrived, so a later revocation of the key
    does not make them unreadable; whether they may still be merged is the rules' decision."""

    def __init__(self, registry: Registry) -> None:
        self._by_kid = {e.participant.kid: e.participant for e in registry.entries if e.role == Role.SITE}

    def signer(self, kid: bytes) -> Participant:
        if kid not in self._by_kid:
            raise Untrusted(f"no participant ever had the key {kid.hex()[:8]}")
        return self._by_kid[kid]
