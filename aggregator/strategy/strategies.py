"""The strategies that come with fledge, and how one is made by its name; what they share is in `base`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from aggregator.strategy import base
from aggregator.strategy.staleness import Constant, Polynomial, StalenessPolicy, staleness_policy
from aggregator.strategy.trial import check_strategy
from broker.runtime.plugins import ExtensionPoint, Plugin, make, real, whole
from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBuff(base.Strategy):
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
        whole(self.name, "updates_per_base", self.updates_per_base, 1, base.MAX_QUOTA)
        if self.buffer is not None:
            whole(self.name, "buffer", self.buffer, 1, base.MAX_BUFFER)
        if self.stale_limit is not None:
            whole(self.name, "stale_limit", self.stale_limit, 0, 2**31)
        if not callable(getattr(self.staleness, "weight", None)):
            raise ConfigError(f"{self.name}: staleness must be a rule's name, or a table with its name and parameters")

    def buffer_size(self, sites: int) -> int:
        """Return K: the configured one or max(2, round(sites / 4)), at most 128."""
        return self.buffer if self.buffer is not None else min(base.MAX_BUFFER, max(2, round(sites / 4)))

    def max_staleness(self, sites: int) -> int:
        """Return the configured limit or 16 * sites / K, rounded up."""
        return self.stale_limit if self.stale_limit is not None else math.ceil(16 * sites / self.buffer_size(sites))

    def merge(
        self,
        old: base.Span,
        deltas: Sequence[base.Span | None],
        step: base.Scalars,
        state: Sequence[base.Span],
        out: base.Span,
        out_state: Sequence[base.Span],
        scratch: base.Scratch,
    ) -> None:
        """Write old + rate x direction; see `Strategy.merge`."""
        members = base.present(deltas, step.weights)
        factor = step.rate * base.direction_factor(members, step)
        if factor == 0.0:
            np.copyto(out, old)
            return
        base.add_scaled(old, members, factor, out, scratch)


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
        return min(base.MAX_BUFFER, max(1, sites))

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
        old: base.Span,
        deltas: Sequence[base.Span | None],
        step: base.Scalars,
        state: Sequence[base.Span],
        out: base.Span,
        out_state: Sequence[base.Span],
        scratch: base.Scratch,
    ) -> None:
        """Write one optimizer step and its new m and v; see `Strategy.merge`."""
        members = base.present(deltas, step.weights)
        factor = base.direction_factor(members, step)
        if factor == 0.0:
            for target, source in zip((out, *out_state), (old, *state), strict=True):
                np.copyto(target, source)
            return
        (old_m, old_v), (out_m, out_v) = state, out_state
        floor = self.tau * self.tau
        with base.float32_range():
            for part in base.parts(old.size, scratch.block):
                direction = base.weighted_sum(members, part, scratch)
                np.multiply(direction, factor, out=direction)
                m = self.beta1 * old_m[part].astype(np.float64) + (1.0 - self.beta1) * direction
                v = self.beta2 * old_v[part].astype(np.float64) + (1.0 - self.beta2) * (direction * direction - floor)
                out_m[part] = m
                out_v[part] = v
                # Rounding v - tau^2 to float32 may leave it a hair below -tau^2.
                root = np.sqrt(np.maximum(v + floor, 0.0))
                out[part] = old[part] + step.rate * m / (root + self.tau)


STRATEGIES = ExtensionPoint[base.Strategy](
    "fledge.strategies", "strategy", {kind.name: kind for kind in (FedBuff, FedAsync, FedAvg, FedAdam)}
)


def strategy(name: str, **parameters: object) -> base.Strategy:
    """Make a strategy by its name in the configuration; third parties register in `fledge.strategies`.

    Args:
        parameters: the strategy's fields; `staleness` may be a policy, its name, or a table {name, its parameters}.

    Raises:
        ConfigError: the name is unknown, a parameter is wrong, or what a package registered is no complete strategy.
    """
    made = STRATEGIES.build(name, _with_policy(parameters))
    if name not in STRATEGIES.builtins:
        check_strategy(made, name)
    return made


def strategy_from(kind: type[base.Strategy], name: str, parameters: Mapping[str, object]) -> base.Strategy:
    """Make a strategy that a run brings as code, of a class that nobody else uses; `name` becomes the class's.

    Raises:
        ConfigError: a parameter is wrong, or it is no complete strategy.
    """
    try:
        kind.name = name
    except Exception as error:  # its class may be of a kind that decides about that
        raise ConfigError(f"strategy {name!r} takes no name: {type(error).__name__}: {error}") from error
    plugin = Plugin(made_by=kind, told=f"strategy {name!r} in the run's code", builtin=False)
    made: base.Strategy = make(plugin, _with_policy(parameters))
    check_strategy(made, name)
    return made


def _with_policy(parameters: Mapping[str, object]) -> dict[str, object]:
    chosen = parameters.get("staleness")
    if isinstance(chosen, str):
        return {**parameters, "staleness": staleness_policy(chosen)}
    if isinstance(chosen, Mapping):
        if "name" not in chosen:
            raise ConfigError('the strategy\'s staleness table has no name; write staleness = {name = "polynomial"}')
        return {**parameters, "staleness": staleness_policy(**chosen)}
    return dict(parameters)
