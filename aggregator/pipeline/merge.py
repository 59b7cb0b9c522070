"""The lockstep merge: the old model and K deltas side by side, record by record.

Record i of every blob of a run holds the same elements, so the new version's record i needs only theirs: memory is a
few records per stream, whatever the model's size, and there is no accumulator to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregator.strategy.base import Scalars, Scratch, Strategy, ema_release, float32_range, merge_buffers
from aggregator.strategy.plan import MergePlan
from aggregator.strategy.strategies import STRATEGIES
from broker.runtime.plugins import FAILURES
from broker.runtime.threads import InlineExecutor
from protocol import limits
from protocol.buffers import new_buffer
from protocol.cipher import Octets
from protocol.errors import StrategyFailed, Tampered, TrainingError
from protocol.spec import ModelSpec, TensorKind, records

Source = Iterator[Octets]
"""Gives records that are valid until the next but one is asked for."""
Sink = Callable[[memoryview], None]
"""Takes a record, and is through with it when it returns."""
Array = NDArray[np.float32]
RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Plaintext record streams a merge reads, all from the first record."""

    old: Source
    deltas: Sequence[Source]
    states: Sequence[Source]
    """The strategy's streams in its order, update-sized; `blank` stands in at version 1."""
    released: Source | None
    """The released average before; None where the raw version is released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinks:
    """Where the records of the new streams go, in the order of `Sources`."""

    model: Sink
    states: Sequence[Sink]
    released: Sink | None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Neighbouring elements treated alike: bytes [start, stop) of a record."""

    start: int
    stop: int
    kind: TensorKind
    lacking: frozenset[int]


def blank(spec: ModelSpec) -> Source:
    """A state stream of zeros, as every stream is before version 1."""
    zeros = memoryview(bytes(min(limits.RECORD, spec.update_length)))
    for index in range(records(spec.update_length)):
        size = min(limits.RECORD, spec.update_length - index * limits.RECORD)
        head = spec.header[index * limits.RECORD : index * limits.RECORD + size]
        yield head + zeros[: size - len(head)] if head else zeros[:size]


def merge(
    spec: ModelSpec,
    plan: MergePlan,
    strategy: Strategy,
    sources: Sources,
    sinks: Sinks,
    pool: Executor,
    *,
    step: Scalars | None = None,
) -> None:
    """Walk all streams once and write the new ones; `step` replaces the plan's own scalars in a what-if replay.

    Streams are independent, so they decrypt and encrypt on the pool's threads while records are combined.

    Raises:
        Tampered, StoreError: a source failed; the sinks' chunks are orphans then.
        TrainingError: the result does not fit float32; `StrategyFailed` if another package's strategy failed.
    """
    combiner, made = _Combiner(spec, plan, strategy, step), _Made(spec, sinks)
    count, update_count = records(spec.model_length), records(spec.update_length)
    if count == 1:
        pool = InlineExecutor()
    streams = [sources.old, *([sources.released] if sources.released is not None else [])]
    short = [*sources.deltas, *sources.states]
    coming = _start(pool, streams + short)
    writing: Sequence[Future[None]] = ()
    for index in range(count):
        got = [future.result() for future in coming]
        more = streams if index + 1 < count else []
        if index + 1 < update_count:
            more = more + short
        coming = _start(pool, more)
        deltas, states = got[len(streams) :][: len(sources.deltas)], got[len(streams) + len(sources.deltas) :]
        out = made.record(index, got[0], states)
        if index < update_count:
            combiner.combine(index, got[0], deltas, states, out)
        if out.released is not None:
            combiner.release(index, got[1], out.model, out.released)
        _finish(writing)
        writing = [pool.submit(sink, record) for sink, record in made.outputs(out)]
    _finish(writing)
    for stream in streams + short:
        if next(stream, None) is not None:
            raise Tampered("a stream goes on after its last record")


@dataclass(frozen=True, slots=True)
class _Out:
    """One record of every new stream, in the making."""

    model: memoryview
    states: Sequence[memoryview]
    released: memoryview | None


class _Made:
    """The buffers that new records are made in: two for each stream, one being written while the other is filled."""

    def __init__(self, spec: ModelSpec, sinks: Sinks) -> None:
        self._sinks = sinks
        size = min(limits.RECORD, spec.model_length)
        self._turns = [
            _Out(
                new_buffer(size),
                [new_buffer(size) for _ in sinks.states],
                None if sinks.released is None else new_buffer(size),
            )
            for _ in range(2)
        ]

    def record(self, index: int, old: Octets, states: Sequence[Octets]) -> _Out:
        """Record `index`, which begins as what it was before; that of two records ago is overwritten."""
        turn = self._turns[index % 2]
        return _Out(
            _begin(turn.model, old),
            [_begin(buffer, state) for buffer, state in zip(turn.states, states, strict=False)],
            None if turn.released is None else _begin(turn.released, old),
        )

    def outputs(self, out: _Out) -> Iterator[tuple[Sink, memoryview]]:
        """Where each of it goes."""
        yield self._sinks.model, out.model
        yield from zip(self._sinks.states, out.states, strict=False)
        if self._sinks.released is not None and out.released is not None:
            yield self._sinks.released, out.released


def _begin(buffer: memoryview, before: Octets) -> memoryview:
    begun = buffer[: len(before)]
    # Unlike the assignment of a slice, numpy's copy lets other threads run.
    np.copyto(np.frombuffer(begun, np.uint8), np.frombuffer(before, np.uint8))
    return begun


def _start(pool: Executor, streams: Sequence[Source]) -> list[Future[Octets]]:
    return [pool.submit(_next, stream) for stream in streams]


def _next(stream: Source) -> Octets:
    record = next(stream, None)
    if record is None:
        raise Tampered("a stream ends before its last record", "truncated")
    return record


def _finish(writing: Sequence[Future[None]]) -> None:
    for future in writing:
        future.result()


class _Combiner:
    """Combines one record at a time, with buffers it keeps."""

    def __init__(self, spec: ModelSpec, plan: MergePlan, strategy: Strategy, step: Scalars | None) -> None:
        self._spec = spec
        self._strategy = strategy
        self._decay = plan.release_decay
        self._step = step or Scalars(
            weights=tuple(member.weight for member in plan.members), divisor=plan.divisor, rate=plan.rate
        )
        self._scratch = Scratch()
        self._others = strategy.name not in STRATEGIES.builtins
        self._lacking: Mapping[str, frozenset[int]] = _lacking(plan)

    def combine(self, index: int, old: Octets, deltas: Sequence[Octets], states: Sequence[Octets], out: _Out) -> None:
        """Record `index` of the new model and of each state stream."""
        for stretch in self._stretches(index):
            spans = [
                None if position in stretch.lacking else _view(delta, stretch) for position, delta in enumerate(deltas)
            ]
            if stretch.kind == TensorKind.PARAMETER:
                given, made = [_view(each, stretch) for each in states], [_view(each, stretch) for each in out.states]
                self._merge(_view(old, stretch), spans, given, _view(out.model, stretch), made)
            else:
                merge_buffers(_view(old, stretch), spans, self._step.weights, _view(out.model, stretch), self._scratch)

    def _merge(
        self, old: Array, deltas: Sequence[Array | None], state: Sequence[Array], out: Array, out_state: Sequence[Array]
    ) -> None:
        """One span by the strategy; what others' code does is looked at, for it may do anything."""
        try:
            with float32_range():
                self._strategy.merge(old, deltas, self._step, state, out, out_state, self._scratch)
        except TrainingError:
            raise
        except FAILURES as error:
            if not self._others:
                raise
            name = self._strategy.name
            raise StrategyFailed(f"strategy {name!r}: merge fails: {type(error).__name__}: {error}") from error
        # The processor notes what ours cannot hold; a value that was written as infinite or no number it does not.
        if self._others and not all(np.isfinite(each).all() for each in (out, *out_state)):
            raise StrategyFailed(f"strategy {self._strategy.name!r}: merge leaves values that are no finite numbers")

    def release(self, index: int, before: Octets, model: Octets, out: memoryview) -> None:
        """Record `index` of the released average."""
        for stretch in self._stretches(index):
            raw, released = _view(model, stretch), _view(out, stretch)
            ema_release(_view(before, stretch), raw, self._decay, released, self._scratch)

    def _stretches(self, index: int) -> list[_Stretch]:
        result: list[_Stretch] = []
        nothing: frozenset[int] = frozenset()
        for span in self._spec.spans(index):
            lacking = self._lacking.get(span.tensor.name, nothing)
            last = result[-1] if result else None
            if last and last.stop == span.start and last.kind == span.tensor.kind and last.lacking == lacking:
                result[-1] = _Stretch(last.start, span.stop, last.kind, lacking)
            else:
                result.append(_Stretch(span.start, span.stop, span.tensor.kind, lacking))
        return result


def _lacking(plan: MergePlan) -> dict[str, frozenset[int]]:
    """Which members lack which tensor; tensors that all have are left out."""
    names = {name for member in plan.members for name in member.absent}
    return {name: frozenset(i for i, m in enumerate(plan.members) if name in m.absent) for name in names}


def _view(buffer: Octets, stretch: _Stretch) -> Array:
    return np.frombuffer(buffer, np.float32, (stretch.stop - stretch.start) // 4, stretch.start)
