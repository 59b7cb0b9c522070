"""How buffered deltas move the model: pure functions on aligned float32 spans.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator.strategy.staleness import Constant, Polynomial, StalenessPolicy, staleness_policy
from broker.runtime.plugins import build, real, whole
from protocol.errors import ConfigError, TrainingError

Span = NDArray[np.float32]
Wide = NDArray[np.float64]

MAX_BUFFER = 128
MAX_QUOTA = 64
"""Updates from one base that a version's record can allow."""
_NO_WEIGHT = 1e-30  # a total below this counts as zero: nobody means it, and dividing by it overflows
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


class Strategy(Protocol):
    """A rule for merging, with the defaults that belong to it."""

    @property
    def name(self) -> str:
        """The name in configuration and version rows."""
        ...

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the extra float32 streams it keeps, zero at version 0."""
        ...

    @property
    def synchronous(self) -> bool:
        """Whether a version waits for all live sites."""
        ...

    @property
    def corrected(self) -> bool:
        """Whether example weights are corrected for how often a site takes part."""
        ...

    @property
    def rate(self) -> float:
        """The server's learning rate."""
        ...

    @property
    def staleness(self) -> StalenessPolicy:
        """How age is weighed."""
        ...

    @property
    def updates_per_base(self) -> int:
        """How many updates a site may send from one version, and have in one version."""
        ...

    def buffer_size(self, sites: int) -> int:
        """Return K, the updates that make a version, in a federation of `sites` live sites."""
        ...

    def max_staleness(self, sites: int) -> int:
        """Return the greatest staleness that is still merged."""
        ...

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
        ...


def _present(deltas: Sequence[Span | None], weights: Sequence[float]) -> list[tuple[Span, float]]:
    return [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if delta is not None]


def _weighted_sum(members: Sequence[tuple[Span, float]], part: slice, scratch: Scratch) -> Wide:
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


def _parts(size: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, size)) for start in range(0, size, block)]


def _add_scaled(old: Span, members: Sequence[tuple[Span, float]], factor: float, out: Span, scratch: Scratch) -> None:
    """Write old + factor x sum(weight x delta)."""
    with _float32_range():
        for part in _parts(old.size, scratch.block):
            total = _weighted_sum(members, part, scratch)
            np.multiply(total, factor, out=total)
            np.add(total, old[part], out=out[part], dtype=np.float64, casting="same_kind")


@contextmanager
def _float32_range() -> Iterator[None]:
    """Turn an overflow while writing float32 results into an error; this costs no pass, the processor takes note."""
    try:
        with np.errstate(over="raise", invalid="raise", under="ignore"):
            yield
    except FloatingPointError as error:
        raise TrainingError(
            "the merged values do not fit float32: the deltas or the server's rate are far too large; "
            "look at the members' norms and leave the diverged site out"
        ) from error


def _direction_factor(members: Sequence[tuple[Span, float]], step: Scalars) -> float:
    """Return what sum(w_i * delta_i) over the present members is multiplied by to give the direction (rule 3)."""
    present = math.fsum(weight for _, weight in members)
    if present < _NO_WEIGHT:
        return 0.0
    return math.fsum(step.weights) / present / step.divisor


def merge_buffers(
    old: Span, deltas: Sequence[Span | None], weights: Sequence[float], out: Span, scratch: Scratch
) -> None:
    """Write old plus the plain weighted mean of the deltas: BatchNorm statistics never see a server rate.

    Args:
        weights: the members' weights, as in `Scalars`. Members whose delta is None do not count.
    """
    members = _present(deltas, weights)
    present = math.fsum(weight for _, weight in members)
    if present < _NO_WEIGHT:
        np.copyto(out, old)
        return
    _add_scaled(old, members, 1.0 / present, out, scratch)


def ema_decay(version: int, decay: float = 0.8) -> float:
    """Return the decay with which `version` (1 is the first merged one) enters the released average.

    It starts as the plain mean of all versions so far, so that the untrained version 0 does not linger.
    """
    return min(decay, (version - 1) / version)


def ema_release(released: Span, raw: Span, decay: float, out: Span, scratch: Scratch) -> None:
    """Write decay x the last released values + (1 - decay) x the new raw ones."""
    for part in _parts(raw.size, scratch.block):
        total, spare = scratch.total[: part.stop - part.start], scratch.spare[: part.stop - part.start]
        np.multiply(released[part], decay, out=total, dtype=np.float64)
        np.multiply(raw[part], 1.0 - decay, out=spare, dtype=np.float64)
        np.add(total, spare, out=out[part], casting="same_kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBuff:
    """Buffered asynchronous averaging (Nguyen 2022): w += rate / K * sum(s_i * c_i * delta_i).

    Args:
        rate: server learning rate; 1.25 suits K = N / 4 (N sites) and square-root staleness.
        buffer: K; None means max(2, round(N / 4)).
        stale_limit: greatest staleness merged; None means 16 * N / K, sixteen times what equal sites see: a site
            twenty times slower than the others still takes part, and square-root weights keep it harmless.
    """

    name: ClassVar[str] = "fedbuff"
    state: ClassVar[tuple[str, ...]] = ()
    synchronous: ClassVar[bool] = False
    corrected: ClassVar[bool] = True

    rate: float = 1.25
    buffer: int | None = None
    stale_limit: int | None = None
    updates_per_base: int = 2
    staleness: StalenessPolicy = field(default_factory=Polynomial)

    def __post_init__(self) -> None:
        real(self.name, "rate", self.rate, 0.0, 1e6)
        whole(self.name, "updates_per_base", self.updates_per_base, 1, MAX_QUOTA)
        if self.buffer is not None:
            whole(self.name, "buffer", self.buffer, 1, MAX_BUFFER)
        if self.stale_limit is not None:
            whole(self.name, "stale_limit", self.stale_limit, 0, 2**31)
        if not callable(getattr(self.staleness, "weight", None)):
            raise ConfigError(f"{self.name}: staleness must be a rule's name, or a table with its name and parameters")

    def buffer_size(self, sites: int) -> int:
        """Return K: the configured one or max(2, round(sites / 4)), at most 128."""
        return self.buffer if self.buffer is not None else min(MAX_BUFFER, max(2, round(sites / 4)))

    def max_staleness(self, sites: int) -> int:
        """Return the configured limit or 16 * sites / K, rounded up."""
        return self.stale_limit if self.stale_limit is not None else math.ceil(16 * sites / self.buffer_size(sites))

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
        """Write old + rate x direction; see `Strategy.merge`."""
        members = _present(deltas, step.weights)
        factor = step.rate * _direction_factor(members, step)
        if factor == 0.0:
            np.copyto(out, old)
            return
        _add_scaled(old, members, factor, out, scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAsync(FedBuff):
    """A version per update (Xie 2019) in delta form: w += alpha * s * c * delta.

    The paper's form mixes models, w = (1 - a) w + a w_local, and so also pulls w back towards the old base.
    `rate` is the paper's alpha.
    """

    name: ClassVar[str] = "fedasync"

    rate: float = 0.9
    buffer: int | None = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg(FedBuff):
    """Synchronous averaging (McMahan 2017): every live site's update from the current version, by its examples."""

    name: ClassVar[str] = "fedavg"
    synchronous: ClassVar[bool] = True
    corrected: ClassVar[bool] = False

    rate: float = 1.0
    updates_per_base: int = 1
    staleness: StalenessPolicy = field(default_factory=Constant)

    def buffer_size(self, sites: int) -> int:
        """Return all live sites, at most 128."""
        return min(MAX_BUFFER, max(1, sites))

    def max_staleness(self, sites: int) -> int:
        """Return 0: only updates from the current version count."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam(FedBuff):
    """Server optimizer on buffered deltas (Reddi 2021), without bias correction.

    m = beta1 m + (1 - beta1) d; v = beta2 v + (1 - beta2) d^2; w += rate * m / (sqrt(v) + tau), d the direction.
    The paper starts v at tau^2. The stream called v holds v - tau^2, so that it may start at zero like every stream.
    """

    name: ClassVar[str] = "fedadam"
    state: ClassVar[tuple[str, ...]] = ("m", "v")

    rate: float = 0.005
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        # Named in full because a slotted dataclass is a new class, which the short form of super() does not know.
        FedBuff.__post_init__(self)
        for name in ("beta1", "beta2", "tau"):
            real(self.name, name, getattr(self, name), 0.0 if name == "tau" else -math.ulp(0.0), 1e6)
        if self.beta1 >= 1.0 or self.beta2 >= 1.0:
            raise ConfigError(f"{self.name}: beta1 and beta2 must be numbers from 0 to below 1")

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
        """Write one optimizer step and its new m and v; see `Strategy.merge`."""
        members = _present(deltas, step.weights)
        factor = _direction_factor(members, step)
        if factor == 0.0:
            for target, source in zip((out, *out_state), (old, *state), strict=True):
                np.copyto(target, source)
            return
        (old_m, old_v), (out_m, out_v) = state, out_state
        floor = self.tau * self.tau
        with _float32_range():
            for part in _parts(old.size, scratch.block):
                direction = _weighted_sum(members, part, scratch)
                np.multiply(direction, factor, out=direction)
                m = self.beta1 * old_m[part].astype(np.float64) + (1.0 - self.beta1) * direction
                v = self.beta2 * old_v[part].astype(np.float64) + (1.0 - self.beta2) * (direction * direction - floor)
                out_m[part] = m
                out_v[part] = v
                # Rounding v - tau^2 to float32 may leave it a hair below -tau^2.
                root = np.sqrt(np.maximum(v + floor, 0.0))
                out[part] = old[part] + step.rate * m / (root + self.tau)


STRATEGIES: dict[str, Callable[..., Strategy]] = {kind.name: kind for kind in (FedBuff, FedAsync, FedAvg, FedAdam)}


def strategy(name: str, **parameters: object) -> Strategy:
    """Make a strategy by its name in the configuration; third parties register in `fledge.strategies`.

    Args:
        parameters: the strategy's fields; `staleness` may be a policy, its name, or a table {name, its parameters}.

    Raises:
        ConfigError: the name is unknown or a parameter is wrong.
    """
    chosen = parameters.get("staleness")
    if isinstance(chosen, str):
        parameters["staleness"] = staleness_policy(chosen)
    elif isinstance(chosen, Mapping):
        if "name" not in chosen:
            raise ConfigError('the strategy\'s staleness table has no name; write staleness = {name = "polynomial"}')
        parameters["staleness"] = staleness_policy(**chosen)
    return build("fledge.strategies", STRATEGIES, name, parameters)
