"""A small federation for tests: keys, a signed registry, a model, and updates sealed as a worker seals them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.service.settings import AggregatorSettings
from broker.blobs.base import BlobStore
from broker.blobs.transfer import ChunkUploads
from protocol import topology
from protocol.blob import CallbackSink
from protocol.codec import encode
from protocol.encodings import DENSE_F32
from protocol.envelope import Sealer
from protocol.keys import Identity, Role
from protocol.messages import Kind, Named, Update
from protocol.registry import Registry, sign_registry
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from tests.support.chunks import write_blob

FEDERATION, RUN = "test-federation", "test-run"

SMALL = ModelSpec(
    (
        TensorSpec(name="weight", shape=(5, 3), dtype="F32", kind=TensorKind.PARAMETER),
        TensorSpec(name="running_mean", shape=(3,), dtype="F32", kind=TensorKind.BUFFER),
        TensorSpec(name="bias", shape=(3,), dtype="F32", kind=TensorKind.PARAMETER),
        TensorSpec(name="batches", shape=(), dtype="I64", kind=TensorKind.OTHER),
    )
)
GOOD = Update(
    encoding=DENSE_F32,
    examples=10,
    steps=5,
    seconds=2.0,
    filters=(Named(name="unsafe-none", parameters={}),),
    trainer="test",
    bundle=None,
    absent=(),
    fingerprint=None,
    metrics={},
)


def wide(elements: int) -> ModelSpec:
    """A model of several records: one large tensor, a small buffer, an integer."""
    return ModelSpec(
        (
            TensorSpec(name="weight", shape=(elements,), dtype="F32", kind=TensorKind.PARAMETER),
            TensorSpec(name="running_mean", shape=(7,), dtype="F32", kind=TensorKind.BUFFER),
            TensorSpec(name="batches", shape=(2,), dtype="I64", kind=TensorKind.OTHER),
        )
    )


@dataclass
class Federation:
    """Everybody's keys, as only a test may hold them."""

    sites: int = 3
    root: Identity = field(default_factory=partial(Identity.generate, "root", Role.ROOT))
    aggregator: Identity = field(default_factory=partial(Identity.generate, "aggregator", Role.AGGREGATOR))
    operator: Identity = field(default_factory=partial(Identity.generate, "operator", Role.OPERATOR))

    def __post_init__(self) -> None:
        self.members = {f"site-{i}": Identity.generate(f"site-{i}", Role.SITE) for i in range(self.sites)}
        self.registry = Registry(version=0, entries=())
        for identity in (self.aggregator, self.operator, *self.members.values()):
            roles = ("super",) if identity.role == Role.OPERATOR else ()
            self.registry = self.registry.with_entry(identity.public, organisation="clinic", roles=roles)

    @property
    def root_key(self) -> bytes:
        """What everybody trusts."""
        return bytes(self.root.sign.verify_key)

    @property
    def registry_record(self) -> bytes:
        """The signed registry."""
        return sign_registry(self.registry, self.root, FEDERATION, os.urandom(16))

    def aggregator_settings(self, **more: Any) -> AggregatorSettings:
        """Those of this federation's aggregator."""
        return AggregatorSettings(
            federation=FEDERATION,
            identity=self.aggregator,
            registry_record=self.registry_record,
            root=self.root_key,
            **more,
        )


def payload(spec: ModelSpec, values: Mapping[str, NDArray[Any]], *, update: bool) -> bytes:
    """The payload that holds these tensors (zeros for the others)."""
    data = bytearray(spec.model_length)
    data[: len(spec.header)] = spec.header
    for place in spec.placed:
        if place.tensor.name in values:
            kind = "<i8" if place.tensor.kind == TensorKind.OTHER else "<f4"
            data[place.start : place.stop] = np.asarray(values[place.tensor.name], kind).tobytes()
    return bytes(data[: spec.update_length] if update else data)


def tensors(spec: ModelSpec, data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a payload, by name."""
    return {
        p.tensor.name: np.frombuffer(
            data[p.start : p.stop], "<i8" if p.tensor.kind == TensorKind.OTHER else "<f4"
        ).reshape(p.tensor.shape)
        for p in spec.placed
        if p.stop <= len(data)
    }


@dataclass
class Site:
    """A worker's hand at the wire: seals updates and puts their chunks."""

    federation: Federation
    name: str
    store: BlobStore
    spec: ModelSpec = SMALL
    sequence: int = 0

    @property
    def identity(self) -> Identity:
        """The site's keys."""
        return self.federation.members[self.name]

    def update(
        self,
        values: Mapping[str, NDArray[Any]] | bytes,
        *,
        base: int = 0,
        emit: Callable[[bytes, bytes], None] | None = None,
        signer: Identity | None = None,
        spec: ModelSpec | None = None,
        run: str = RUN,
        **changes: Any,
    ) -> bytes:
        """A sealed update whose chunks are in the store (or go to `emit`); `changes` are to the body."""
        spec = spec or self.spec
        data = values if isinstance(values, bytes) else payload(spec, values, update=True)
        self.sequence += 1
        sealer = Sealer(
            signer or self.identity,
            Kind.UPDATE,
            federation=FEDERATION,
            message_id=os.urandom(16),
            run=run,
            epoch=0,
            sequence=self.sequence,
            version=base,
            spec=spec.digest,
            length=len(data),
        )
        with ThreadPoolExecutor(1) as pool:
            uploads = ChunkUploads.to(self.store, partial(topology.update_chunk, self.name), pool)
            writer = sealer.writer(CallbackSink(lambda name, chunk: emit(name, bytes(chunk))) if emit else uploads)
            write_blob(writer, data)
            uploads.finish()
        return sealer.finish(encode(replace(GOOD, **changes)), [self.federation.aggregator.public], writer.finish())
