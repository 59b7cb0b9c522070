"""Form an update: train, subtract the base, filter, encrypt, one record at a time.

Neither the base nor the delta is ever held in memory. The base is decrypted again for each pass, the trained values
are read from the trainer's live arrays, and what is written is encrypted at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice

import numpy as np
import structlog
from numpy.typing import NDArray

from broker.runtime.threads import InlineExecutor
from protocol import limits
from protocol.blob import BlobWriter, ChunkSink, Manifest
from protocol.cipher import Octets
from protocol.codec import decode, encode, is_word
from protocol.encodings import DENSE_F32
from protocol.envelope import Sealer
from protocol.errors import (
    ConfigError,
    DataError,
    Diverged,
    FledgeError,
    Malformed,
    NothingLearned,
    OutOfMemory,
    Tampered,
    TrainingError,
)
from protocol.messages import Evaluation, Update
from protocol.spec import ModelSpec, Span, TensorKind, records
from worker.api.filters import Dice, FilterChain, Slice, change, fresh_dice
from worker.api.trainer import Control, EvaluationResult, Trainer, TrainResult
from worker.api.weights import F32, Array, Records, Weights, check_array
from worker.storage.local_tensors import LocalTensors

_MAX_METRICS = 256
_MAX_ABSENT = 8192
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """The version that a training starts from."""

    spec: ModelSpec
    payload: Records
    """Opens its payload, decrypted; called once for the trainer and once for each pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """What may leave the site, and how; what stays here."""

    filters: FilterChain
    exclude: Sequence[str] = ()
    """Patterns (`*`, `?`, `[…]`) of tensor names that the site keeps to itself."""
    own: LocalTensors | None = None
    """Where its own values of those live; without it every training begins with the version's."""
    dice: Dice | None = None
    """For noise, used for one update alone; by default they cannot be foreseen."""


@dataclass(frozen=True, slots=True)
class UpdateOutput:
    """Where an update goes."""

    sealer: Sealer
    """Of kind UPDATE, for `spec.update_length` bytes; its envelope is the caller's to finish."""
    sink: ChunkSink
    """Takes encrypted chunks, on a thread of its own; on an error the caller drops them."""


def contribute(
    trainer: Trainer,
    base: BaseVersion,
    egress: Egress,
    output: UpdateOutput,
    *,
    control: Control,
    bundle: bytes | None = None,
) -> tuple[Update, Manifest]:
    """Train once and encrypt what was learned; returns the update's body and its blob's manifest.

    `bundle`: the digest of the deployed code that the trainer is of; None: the site's own.

    Raises:
        Aborted: `control` said so.
        TrainingError: the trainer failed, or its result does not fit the model, is not finite, or is the base.
        ConfigError: a pattern matches nothing or everything, or a filter cannot work.
        WireError, StoreError, StateError: the base or the site's own values cannot be read, or chunks not written.
    """
    spec, own = base.spec, egress.own
    absent = _kept(_keeps(trainer), spec, excluded(spec, egress.exclude))
    private = _private(spec, absent)
    weights = Weights(spec, base.payload, own.values(control.run, spec, private) if own and private else None)
    began = time.monotonic()
    control.reported.clear()  # of an evaluation before
    with _foreign(trainer, "train"):
        result = trainer.train(weights, control)
    seconds = max(1e-6, time.monotonic() - began)
    _check_trained(trainer, weights, result)
    if not result.metrics:
        result = replace(result, metrics=dict(control.reported))
    update = _describe(trainer, result, seconds, egress.filters, absent, bundle)
    delta = _Delta(spec, base.payload, result, absent, control)
    manifest = delta.seal(egress.filters, egress.dice or fresh_dice(), output.sealer, output.sink)
    if not delta.changed:
        raise NothingLearned(
            f"{type(trainer).__name__} took {result.steps} steps, and every shared tensor is as it was before; nothing "
            "was sent. Look whether the trainer returns the very tensors that its optimizer trains, and whether its "
            "learning rate is not 0"
        )
    if own and private:
        # A crash after this repeats the training with own values that have been trained once more: no harm.
        own.save(control.run, spec, private, result.weights)
    return update, manifest


def evaluate(
    trainer: Trainer,
    base: BaseVersion,
    *,
    control: Control,
    exclude: Sequence[str] = (),
    own: LocalTensors | None = None,
) -> Evaluation:
    """Evaluate a version, with the site's own values where it keeps tensors to itself; arguments as above."""
    weights = as_here(_keeps(trainer), control.run, base, exclude, own)
    with _foreign(trainer, "evaluate"):
        result: EvaluationResult = trainer.evaluate(weights, control)
    if not isinstance(result, EvaluationResult):
        given = type(result).__name__
        raise TrainingError(
            f"{type(trainer).__name__}.evaluate returned a {given}; it has to return a fledge.EvaluationResult"
        )
    if result.examples < 0:
        raise TrainingError(f"the trainer evaluated on {result.examples} examples")
    return Evaluation(examples=int(result.examples), metrics=_metrics(result.metrics))


def as_here(
    keeps: frozenset[str], run: str, base: BaseVersion, exclude: Sequence[str], own: LocalTensors | None
) -> Weights:
    """A version as this site uses it: with its own values of the tensors that trainer (`keeps`) or site keep here."""
    spec = base.spec
    private = _private(spec, _kept(keeps, spec, excluded(spec, exclude)))
    return Weights(spec, base.payload, own.values(run, spec, private) if own and private else None)


def excluded(spec: ModelSpec, patterns: Sequence[str]) -> frozenset[str]:
    """The floating tensors that match any of the patterns.

    Raises:
        ConfigError: a pattern matches no tensor at all (a slip there would share what should stay), nothing is left
            to share, or more are excluded than an update can name.
    """
    every = [tensor.name for tensor in spec.tensors]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ConfigError(f"exclude: {pattern!r} matches no tensor of the model; its tensors are {every[:5]} …")
    found = frozenset(name for name in spec.names if any(fnmatchcase(name, pattern) for pattern in patterns))
    if found == spec.names:
        raise ConfigError(f"exclude: {list(patterns)} leaves nothing to share")
    if len(found) > _MAX_ABSENT:
        raise ConfigError(f"exclude: {len(found)} tensors match; an update can leave out at most {_MAX_ABSENT}")
    return found


def _keeps(trainer: Trainer) -> frozenset[str]:
    """What the trainer keeps to the site because of what it is (`Trainer.keeps`)."""
    found: frozenset[str] = getattr(trainer, "keeps", frozenset())
    return found


def _kept(keeps: frozenset[str], spec: ModelSpec, absent: frozenset[str]) -> frozenset[str]:
    """What is excluded, together with what the trainer keeps."""
    if unknown := sorted(keeps - spec.names):
        raise TrainingError(f"the trainer keeps {unknown[0]!r} to itself, which is no floating tensor of the model")
    found = absent | keeps
    if found == spec.names:
        raise ConfigError("exclude and what the trainer keeps leave nothing to share")
    if len(found) > _MAX_ABSENT:
        raise ConfigError(f"{len(found)} tensors stay here; an update can leave out at most {_MAX_ABSENT}")
    return found


def _private(spec: ModelSpec, absent: frozenset[str]) -> frozenset[str]:
    return absent | {tensor.name for tensor in spec.tensors if tensor.kind == TensorKind.OTHER}


@contextmanager
def _foreign(trainer: Trainer, what: str) -> Iterator[None]:
    """Turn whatever a site's own code raises into one of our errors."""
    try:
        yield
    except FledgeError:
        raise
    except Exception as error:
        # torch's own error for a full GPU is no MemoryError, and torch may not be installed here.
        full = isinstance(error, MemoryError) or any(k.__name__ == "OutOfMemoryError" for k in type(error).__mro__)
        kind = OutOfMemory if full else TrainingError
        raise kind(f"{type(trainer).__name__}.{what} failed: {type(error).__name__}: {error}") from error


def _check_trained(trainer: Trainer, base: Weights, result: TrainResult) -> None:
    """Whether a training began with the base, and took a step."""
    name = type(trainer).__name__
    if not isinstance(result, TrainResult):
        raise TrainingError(f"{name}.train returned a {type(result).__name__}; it has to return a fledge.TrainResult")
    if not base.was_read:
        raise TrainingError(
            f"{name}.train never read the version that it was given; let it begin with base.copy_into(…) or "
            "base.tensors()"
        )
    if result.steps < 1 or result.examples < 1:
        raise DataError(
            f"{name} took {result.steps} steps by {result.examples} examples, so there is nothing to send; look "
            "whether its data give a single batch here"
        )


def _describe(
    trainer: Trainer,
    result: TrainResult,
    seconds: float,
    filters: FilterChain,
    absent: frozenset[str],
    bundle: bytes | None,
) -> Update:
    update = Update(
        encoding=DENSE_F32,
        examples=int(result.examples),
        steps=int(result.steps),
        seconds=seconds,
        filters=filters.named,
        trainer=type(trainer).__name__,
        bundle=bundle,
        absent=tuple(sorted(absent)),
        fingerprint=result.fingerprint,
        metrics=_metrics(result.metrics),
    )
    try:
        decode(Update, encode(update), limits.BODY)
    except (Malformed, OverflowError) as error:
        raise TrainingError(f"{type(trainer).__name__} returned what an update cannot say: {error}") from error
    return update


def _metrics(given: Mapping[str, float]) -> dict[str, float]:
    if len(given) > _MAX_METRICS:
        raise TrainingError(f"the trainer reports {len(given)} metrics; at most {_MAX_METRICS} are allowed")
    result: dict[str, float] = {}
    for name, value in given.items():
        if not is_word(name):
            raise TrainingError(f"metric {name!r}: names have 1 to 64 letters, digits and the characters . _ : + -")
        if math.isfinite(value):
            result[name] = float(value)
        else:
            _log.warning("metric.left_out", metric=name, value=str(value))
    return result


@dataclass(slots=True)
class _Stretch:
    """Neighbouring shared elements of one record, as indices into its buffer of float32."""

    start: int
    stop: int


class _Delta:
    """The delta of one training as a stream of records; every pass reads base and trained values anew."""

    def __init__(
        self, spec: ModelSpec, base: Records, result: TrainResult, absent: frozenset[str], control: Control
    ) -> None:
        self._spec = spec
        self._base = base
        self._result = result
        self._absent = absent
        self._control = control
        size = min(limits.RECORD, spec.update_length + -spec.update_length % 4)
        self._turns = [np.zeros(size // 4, F32) for _ in range(min(2, records(spec.update_length)))]
        """Records in the making: one is written while the next one is formed in the other."""
        self._finite = np.empty(size // 4, np.bool_)
        self.changed = False
        """Whether any shared value has been found to differ from the base."""
        self._name = ""
        self._flat: Array | np.flatiter[Array] | None = None
        missing = sorted(spec.names - absent - set(result.weights))
        if missing:
            raise TrainingError(f"the trainer returned no tensor {missing[0]!r}; {len(missing)} are missing")

    def seal(self, filters: FilterChain, dice: Dice, sealer: Sealer, sink: ChunkSink) -> Manifest:
        """Measure, then filter and write."""
        writer = sealer.writer(sink)
        filters.begin(dice)
        small = records(self._spec.update_length) == 1
        with InlineExecutor() if small else ThreadPoolExecutor(1, thread_name_prefix="worker update") as pool:
            for measuring, before in filters.measuring():
                with closing(self._walk()) as walk:
                    for _, slices in walk:
                        for values in slices:
                            for each in before:
                                change(each, values)
                            measuring.measure(values)
            with closing(self._walk()) as walk:
                self._write(walk, filters, writer, pool)
        return writer.finish()

    def _write(
        self, walk: Iterator[tuple[memoryview, list[Slice]]], filters: FilterChain, writer: BlobWriter, pool: Executor
    ) -> None:
        writing: Future[None] | None = None
        for record, slices in walk:
            for values in slices:
                filters.apply(values)
            if writing is not None:
                writing.result()
            writing = pool.submit(writer.write, record)
        if writing is not None:
            writing.result()

    def _walk(self) -> Generator[tuple[memoryview, list[Slice]], None, None]:
        """Form each record; gives it and its shared elements, until the next but one is asked for."""
        length, count = self._spec.update_length, records(self._spec.update_length)
        self._name = ""
        index = 0
        for index, record in enumerate(islice(self._base(), count)):
            self._control.check()
            size = min(limits.RECORD, length - index * limits.RECORD)
            if len(record) < size:
                raise Tampered("the base ends before its floating tensors do", "truncated")
            delta = self._turns[index % len(self._turns)]
            stretches = self._form(index, record, delta)
            yield delta.view(np.uint8).data[:size], [delta[s.start : s.stop] for s in stretches]
        if index + 1 != count:
            raise Tampered("the base ends before its floating tensors do", "truncated")

    def _form(self, index: int, record: Octets, delta: Slice) -> list[_Stretch]:
        header = self._spec.header[index * limits.RECORD : (index + 1) * limits.RECORD]
        delta.view(np.uint8)[: len(header)] = np.frombuffer(header, np.uint8)
        stretches: list[_Stretch] = []
        for span in self._spec.spans(index):
            start, stop = span.start // 4, span.stop // 4
            if span.tensor.name in self._absent:
                delta[start:stop] = 0
                continue
            self._subtract(span, np.frombuffer(record, F32, stop - start, span.start), delta[start:stop])
            if stretches and stretches[-1].stop == start:
                stretches[-1].stop = stop
            else:
                stretches.append(_Stretch(start, stop))
        return stretches

    def _subtract(self, span: Span, base: NDArray[np.float32], out: Slice) -> None:
        """Trained − base, with the base as the trainer got it: rounded to the trainer's own type."""
        trained: Array = self._trained(span)[span.offset : span.offset + base.size]
        with np.errstate(over="ignore", invalid="ignore"):
            if trained.dtype == np.float16:
                np.subtract(trained, base.astype(np.float16), out=out, dtype=F32)
            elif span.tensor.name in self._result.bfloat16:
                np.subtract(trained, _bfloat16(base), out=out, casting="same_kind")
            else:
                np.subtract(trained, base, out=out, casting="same_kind")
        self.changed = self.changed or bool(out.any())
        if not np.isfinite(out, out=self._finite[: out.size]).all():
            raise Diverged(
                f"tensor {span.tensor.name!r} holds values that are not finite after training; nothing was sent. "
                "Did training diverge? Try a smaller learning rate"
            )

    def _trained(self, span: Span) -> Array | np.flatiter[Array]:
        """The current tensor, flat; kept until the next one, because fetching it may mean copying from a GPU."""
        if self._flat is None or span.tensor.name != self._name:
            self._flat = None  # before the next one is fetched
            try:
                array = np.asarray(self._result.weights[span.tensor.name])
            except (TypeError, ValueError, RuntimeError) as error:  # as torch's tensors with gradients
                raise TrainingError(
                    f"tensor {span.tensor.name!r} of the training's result cannot be read as an array: {error}"
                ) from error
            check_array(span.tensor, array)
            self._name = span.tensor.name
            self._flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        return self._flat


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the nearest bfloat16, ties to even, as torch does."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) & 0xFFFF0000
    return rounded.astype(np.uint32, copy=False).view(np.float32)
