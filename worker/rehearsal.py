"""Try a trainer where its data are, before it joins a federation: everything but keys, broker and store is real."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.blob import CallbackSink, HeldChunk
from protocol.cipher import Octets
from protocol.envelope import Sealer
from protocol.keys import Identity, Role
from protocol.messages import Kind
from protocol.spec import ModelSpec
from worker.api.filters import FilterChain
from worker.api.trainer import Control, Trainer, training_seed
from worker.api.weights import F32
from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute, evaluate
from worker.trainers.initial import spec_and_payload

_RUN = "rehearsal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """One version of a federation that has this site alone."""

    version: int
    metrics: Mapping[str, float]
    """Of the version before, on the site's own data."""
    examples: int
    steps: int
    seconds: float
    """Time the training took."""
    norm: float
    """L2 norm of the delta, as it would leave the site."""
    sealing: float
    """Seconds that subtracting, filtering and encrypting took."""


def rehearse(
    trainer: Trainer, filters: FilterChain, *, versions: int = 3, exclude: Sequence[str] = ()
) -> Iterator[Rehearsed]:
    """Train, filter, encrypt, decrypt, add, and begin again; the model is held in memory once more for it.

    `trainer` has to offer its initial model as our trainers do (`spec` and `initial()`).

    Raises:
        FledgeError: what would go wrong in a federation.
    """
    spec, payload = spec_and_payload(trainer)
    model = list(payload)
    for version in range(versions):
        yield _rehearse(trainer, filters, exclude, spec, model, version)


def _rehearse(
    trainer: Trainer, filters: FilterChain, exclude: Sequence[str], spec: ModelSpec, model: list[bytes], version: int
) -> Rehearsed:
    control = Control(run=_RUN, version=version, seed=training_seed(b"", _RUN, version, 1))
    base = BaseVersion(spec, lambda: iter(model))
    found = evaluate(trainer, base, control=control, exclude=exclude)
    sealer = Sealer(
        Identity.generate("here", Role.SITE),
        Kind.UPDATE,
        federation=_RUN,
        message_id=bytes(16),
        run=_RUN,
        version=version,
        spec=spec.digest,
        length=spec.update_length,
    )
    chunks: list[bytes] = []
    began = time.monotonic()
    update, manifest = contribute(
        trainer,
        base,
        Egress(filters=filters, exclude=exclude),
        UpdateOutput(sealer, CallbackSink(lambda _name, chunk: chunks.append(bytes(chunk)))),
        control=control,
    )
    sealing = max(0.0, time.monotonic() - began - update.seconds)
    squares = _add(spec, model, sealer.key.reader(manifest).read(map(HeldChunk, chunks)))
    return Rehearsed(
        version=version,
        metrics=found.metrics,
        examples=update.examples,
        steps=update.steps,
        seconds=update.seconds,
        norm=math.sqrt(squares),
        sealing=sealing,
    )


def _add(spec: ModelSpec, model: list[bytes], delta: Iterable[Octets]) -> float:
    squares = 0.0
    for index, record in enumerate(delta):
        changed = bytearray(model[index])
        for span in spec.spans(index):
            count = (span.stop - span.start) // 4
            values: NDArray[np.float32] = np.frombuffer(record, F32, count, span.start)
            np.frombuffer(changed, F32, count, span.start)[:] += values
            squares += float(np.square(values, dtype=np.float64).sum())
        model[index] = bytes(changed)
    return squares
