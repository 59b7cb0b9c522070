"""What tests of training share: models as payloads, updates formed for real and opened again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.blob import CallbackSink, Manifest
from protocol.envelope import Sealer
from protocol.keys import Identity, Role
from protocol.messages import Kind, Named, Update
from protocol.spec import ModelSpec, TensorKind
from tests.support.chunks import collected, cut, plaintext
from worker.api.filters import Dice, FilterChain, build
from worker.api.trainer import Control, EvaluationResult, Trainer, TrainResult
from worker.api.weights import Records, Weights, read_pieces
from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute
from worker.storage.local_tensors import LocalTensors
from worker.trainers.initial import spec_and_payload

Arrays = dict[str, NDArray[Any]]
FEDERATION = "test"
SITE = Identity.generate("north", Role.SITE)
RAW = build([Named(name="unsafe-none", parameters={})])


def model(arrays: Mapping[str, NDArray[Any]], *, buffers: Sequence[str] = ()) -> tuple[ModelSpec, Records]:
    """A model's specification and the payload of these values."""
    spec, payload = spec_and_payload(arrays, buffers=buffers)
    recorded = list(payload)
    return spec, lambda: iter(recorded)


def control(**changes: Any) -> Control:
    """Control of a training of run `r` from version 1."""
    return Control(**{"run": "r", "version": 1, "seed": 7, **changes})


@dataclass
class Adding:
    """A trainer that adds a constant to each floating array, and one to the others."""

    arrays: Arrays
    step: float = 1.0
    result: dict[str, Any] = field(default_factory=dict)
    before: Arrays = field(default_factory=dict)

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Remember what came, add, return."""
        base.copy_into(self.arrays)
        self.before = {name: array.copy() for name, array in self.arrays.items()}
        for array in self.arrays.values():
            array += np.asarray(self.step if array.dtype.kind == "f" else 1, array.dtype)
        return TrainResult(**{"weights": self.arrays, "examples": 3, "steps": 1, **self.result})

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        """The sum of everything."""
        model.copy_into(self.arrays)
        total = sum(float(array.sum()) for array in self.arrays.values())
        return EvaluationResult(examples=2, metrics={"sum": total})


@dataclass(frozen=True)
class Formed:
    """An update as it left the trainer, opened again."""

    update: Update
    manifest: Manifest
    payload: bytes
    delta: Arrays


def form(
    trainer: Trainer,
    spec: ModelSpec,
    base: Records,
    *,
    filters: FilterChain = RAW,
    exclude: Sequence[str] = (),
    own: LocalTensors | None = None,
    dice: Dice | None = None,
    training: Control | None = None,
    emit: Callable[[bytes, bytes], None] | None = None,
) -> Formed:
    """Train, encrypt into memory, decrypt."""
    sealer = Sealer(
        SITE,
        Kind.UPDATE,
        federation=FEDERATION,
        message_id=bytes(16),
        run="r",
        spec=spec.digest,
        length=spec.update_length,
    )
    chunks: list[bytes] = []
    update, manifest = contribute(
        trainer,
        BaseVersion(spec, base),
        Egress(filters=filters, exclude=exclude, own=own, dice=dice),
        UpdateOutput(sealer, CallbackSink(emit) if emit else collected(chunks)),
        control=training or control(),
    )
    payload = plaintext(sealer.key.reader(manifest), chunks)
    return Formed(update, manifest, payload, delta_of(spec, payload))


def delta_of(spec: ModelSpec, payload: bytes) -> Arrays:
    """The floating tensors of an update's payload."""
    floats = ModelSpec(tuple(t for t in spec.tensors if t.kind != TensorKind.OTHER))
    if payload[: len(spec.header)] != spec.header:
        raise AssertionError("the header is not the model's")
    whole = floats.header + payload[len(spec.header) :]
    pieces = read_pieces(floats, cut(whole))
    found: Arrays = {t.name: np.zeros(t.shape, np.float32) for t in floats.tensors}
    for piece in pieces:
        found[piece.tensor.name].reshape(-1)[piece.offset : piece.offset + piece.values.size] = piece.values
    return found
