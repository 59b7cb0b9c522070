"""What a strategy is, and the arithmetic that all of them share: pure functions on aligned float32 spans.

Rules every strategy keeps:

1. A delta is trained minus base, so the server adds it.
2. Sums run in float64, members in order, element by element: the result has the same bits on every repetition and
   wherever a vector is cut into spans. The scalars (`Scalars`) are the same for all spans of one merge.
3. Where a member lacks a tensor, the sum over the others is scaled up by their share of the weights; where all lack
   it the old value stays. With w the weights and D the divisor:
   direction = sum(all w) / D * sum(w_i * delta_i over those that have it) / sum(w_i over those that have it).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from aggregator.strategy.staleness import Polynomial, StalenessPolicy
from protocol.errors import TrainingError

Span = NDArray[np.float32]
"""Neighbouring values of a model, as float32."""
Wide = NDArray[np.float64]

MAX_BUFFER = 128
MAX_QUOTA = 64
"""Updates from one base that a version's record can allow."""
_NO_WEIGHT = 1e-30  # a total below this counts as zero: it is never meant, and dividing by it overflows
_BLOCK = 32_768  # elements; two float64 blocks and the float32 ones then stay in a 2 MiB cache


class Scratch:
    """Float64 working space for one merge at a time; make one per thread and keep it."""

    __slots__ = ("block", "spare", "total")

    def __init__(self, block: int = _BLOCK) -> None:
        self.block = block
        self.total: Wide = np.empty(block, np.float64)
        self.spare: Wide = np.empty(block, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """Every scalar one merge uses; stored with the version, so that a replay gives the same bytes.

    Args:
        weights: one per member, in order: staleness weight x example weight x clip factor.
        divisor: what the weighted sum is divided by (K_used, also for a half-filled buffer).
        rate: the server's learning rate.
    """

    weights: tuple[float, ...]
    divisor: float
    rate: float


class Strategy(ABC):
    """A rule for merging: `merge`, and whatever differs from the defaults below.

    Made once for a run, with the parameters of `[strategy]` as keyword arguments. It keeps nothing from one merge to
    the next but its streams; whatever it does follows from its arguments alone.
    """

    __slots__ = ()

    name: ClassVar[str]
    """The name in configuration and version rows, which is the name it is registered under."""
    state: ClassVar[tuple[str, ...]] = ()
    """Names of the extra float32 streams it keeps, zero at version 0."""
    synchronous: ClassVar[bool] = False
    """Whether a version waits for all live sites."""
    corrected: ClassVar[bool] = True
    """Whether example weights are corrected for how often a site takes part."""
    rate: float = 1.0
    """The server's learning rate."""
    staleness: StalenessPolicy = Polynomial()
    """How age is weighed."""
    updates_per_base: int = 2
    """How many updates a site may send from one version, and have in one version."""

    def buffer_size(self, sites: int) -> int:
        """Return K, the updates that make a version, in a federation of `sites` live sites; at most 128.

        By default a quarter of the sites, and all of them for a synchronous strategy.
        """
        return min(MAX_BUFFER, max(1, sites) if self.synchronous else max(2, round(sites / 4)))

    def max_staleness(self, sites: int) -> int:
        """Return the greatest staleness that is still merged; by default sixteen times what equal sites see."""
        return 0 if self.synchronous else math.ceil(16 * sites / self.buffer_size(sites))

    @abstractmethod
    def merge(
        self,
        old: Span,
        deltas: Sequence[Span | None],
        step: Scalars,
        state: Sequence[Span],
        out: Span,
        out_state: Sequence[Span],
        scratch: Scratch,
    ) -> None:
        """Write the new values of one span of parameters.

        Args:
            old: the current version's values.
            deltas: one per member, in the order of `step.weights`; None where the member lacks the tensor.
            state: the current streams, in the order of `self.state`; `out_state` receives the new ones.
            out: where the new values go; it may be `old` itself, and `out_state` may be `state`.

        Raises:
            TrainingError: a result does not fit float32.
        """


def present(deltas: Sequence[Span | None], weights: Sequence[float]) -> list[tuple[Span, float]]:
    """The deltas of the members that have the tensor, each with its weight."""
    return [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if delta is not None]


def parts(size: int, block: int) -> list[slice]:
    """A span's blocks, one after the other."""
    return [slice(start, min(start + block, size)) for start in range(0, size, block)]


def weighted_sum(members: Sequence[tuple[Span, float]], part: slice, scratch: Scratch) -> Wide:
    """Return the sum of weight x delta[part] in float64; it lies in `scratch.total`."""
    size = part.stop - part.start
    total, spare = scratch.total[:size], scratch.spare[:size]
    first = True
    for delta, weight in members:
        # The cast is the ufunc's own, block by block in the cache: a quarter faster than a copy and a product.
        np.multiply(delta[part], weight, out=total if first else spare, dtype=np.float64)
        if not first:
            np.add(total, spare, out=total)
        first = False
    return total


def direction_factor(members: Sequence[tuple[Span, float]], step: Scalars) -> float:
    """Return what sum(w_i * delta_i) over the present members is multiplied by to give the direction (rule 3)."""
    weight = math.fsum(weight for _, weight in members)
    if weight < _NO_WEIGHT:
        return 0.0
    return math.fsum(step.weights) / weight / step.divisor


def directions(
    size: int, deltas: Sequence[Span | None], step: Scalars, scratch: Scratch
) -> Iterator[tuple[slice, Wide]]:
    """The direction (rule 3) block by block, each valid until the next: what most strategies scale and add.

    Where no member has the tensor, or no member's update counts, it is zero.
    """
    members = present(deltas, step.weights)
    factor = direction_factor(members, step)
    for part in parts(size, scratch.block):
        if factor == 0.0:
            scratch.total[: part.stop - part.start] = 0.0
            yield part, scratch.total[: part.stop - part.start]
            continue
        total = weighted_sum(members, part, scratch)
        np.multiply(total, factor, out=total)
        yield part, total


def add_scaled(old: Span, members: Sequence[tuple[Span, float]], factor: float, out: Span, scratch: Scratch) -> None:
    """Write old + factor x sum(weight x delta)."""
    with float32_range():
        for part in parts(old.size, scratch.block):
            total = weighted_sum(members, part, scratch)
            np.multiply(total, factor, out=total)
            np.add(total, old[part], out=out[part], dtype=np.float64, casting="same_kind")


@contextmanager
def float32_range() -> Iterator[None]:
    """Turn an overflow while writing float32 results into an error; this costs no pass, the processor takes note."""
    try:
        with np.errstate(over="raise", invalid="raise", under="ignore"):
            yield
    except FloatingPointError as error:
        raise TrainingError(
            "the merged values do not fit float32: the deltas or the server's rate are far too large; "
            "look at the members' norms and leave the diverged site out"
        ) from error


def merge_buffers(
    old: Span, deltas: Sequence[Span | None], weights: Sequence[float], out: Span, scratch: Scratch
) -> None:
    """Write old plus the plain weighted mean of the deltas: BatchNorm statistics never see a server rate.

    Args:
        weights: the members' weights, as in `Scalars`. Members whose delta is None do not count.
    """
    members = present(deltas, weights)
    weight = math.fsum(weight for _, weight in members)
    if weight < _NO_WEIGHT:
        np.copyto(out, old)
        return
    add_scaled(old, members, 1.0 / weight, out, scratch)


def ema_decay(version: int, decay: float = 0.8) -> float:
    """Return the decay with which `version` (1 is the first merged one) enters the released average.

    It starts as the plain mean of all versions so far, so that the untrained version 0 does not linger.
    """
    return min(decay, (version - 1) / version)


def ema_release(released: Span, raw: Span, decay: float, out: Span, scratch: Scratch) -> None:
    """Write decay x the last released values + (1 - decay) x the new raw ones."""
    for part in parts(raw.size, scratch.block):
        total, spare = scratch.total[: part.stop - part.start], scratch.spare[: part.stop - part.start]
        np.multiply(released[part], decay, out=total, dtype=np.float64)
        np.multiply(raw[part], 1.0 - decay, out=spare, dtype=np.float64)
        np.add(total, spare, out=out[part], casting="same_kind")
