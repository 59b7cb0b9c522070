"""Privacy filters: what a site does to its delta before anybody else sees it, in the order the site wrote down.

Filters see the delta as a stream of slices, twice: first whoever has to know the whole delta measures it, then every
filter changes each slice in place. Noise is added in the second pass only. All shared tensors count as one vector:
BatchNorm's running statistics are clipped and noised together with the parameters. (Noise may turn a small running
variance negative; sites that add noise exclude such statistics or train models with GroupNorm.)

Third parties register a class in the entry-point group `fledge.filters`.
"""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from broker.runtime.settings import misfit
from protocol import limits
from protocol.errors import ConfigError
from protocol.messages import Named

Slice = NDArray[np.float32]
Dice = np.random.Generator
GROUP = "fledge.filters"
_log = structlog.get_logger(__name__)


class PrivacyFilter(Protocol):
    """One filter of a site; used for one update after the other, by one thread."""

    measures: ClassVar[bool]
    """Whether it has to see the whole delta before it can change any of it."""
    random: ClassVar[bool]
    """Whether it draws dice; nothing that measures may come after it."""

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        """Begin an update whose delta has an L2 norm of at most `bound`; returns the bound of what comes out.

        Raises:
            ConfigError: the filter needs a bound and there is none.
        """
        ...

    def measure(self, values: Slice) -> None:
        """Look at a slice; all slices come in order. Called only if `measures`."""
        ...

    def apply(self, values: Slice) -> None:
        """Change a slice in place. May be called for the whole delta several times if a later filter measures."""
        ...


class Clip:
    """Scales the delta down to an L2 norm of at most `norm` (McMahan et al. 2018, flat clipping)."""

    measures: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def __init__(self, norm: float) -> None:
        """`norm`: in the units of the weights."""
        self._limit = _positive("clip", "norm", norm)
        self._squares = 0.0

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        self._squares = 0.0
        return self._limit if bound is None else min(self._limit, bound)

    def measure(self, values: Slice) -> None:
        # Ten times cheaper than a dot product, for which BLAS would wake all of its threads.
        self._squares += float(np.einsum("i,i->", values, values, dtype=np.float64))

    def apply(self, values: Slice) -> None:
        norm = math.sqrt(self._squares)
        if norm > self._limit:
            # A little less, so that rounding to float32 cannot bring the norm above its limit again.
            values *= np.float32(self._limit / norm * (1 - 2**-21))


class Gaussian:
    """Adds normal noise of standard deviation `noise_multiplier` × clip norm to every shared value.

    Noise is drawn in float32; attacks on the rounding of floating-point noise are not defended against.
    """

    measures: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __init__(self, noise_multiplier: float) -> None:
        self._multiplier = _positive("gaussian", "noise_multiplier", noise_multiplier)
        self._sigma = np.float32(0)
        self._dice: Dice | None = None
        self._noise = np.empty(limits.RECORD // 4, np.float32)

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        if bound is None:
            raise ConfigError(
                "the privacy filter `gaussian` needs `clip` before it: without a norm noise means nothing"
            )
        self._sigma = np.float32(self._multiplier * bound)
        self._dice = dice
        return None

    def measure(self, values: Slice) -> None:
        """Nothing: noise does not depend on the delta."""

    def apply(self, values: Slice) -> None:
        if self._dice is None:
            raise ConfigError("the privacy filter `gaussian` was used before it was begun")
        noise = self._noise[: values.size]
        self._dice.standard_normal(dtype=np.float32, out=noise)
        noise *= self._sigma
        values += noise


class UnsafeNone:
    """Shares the delta as it is, and says so in the log each time; deltas can give training data away."""

    measures: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        _log.warning("privacy.off", filter="unsafe-none")
        return bound

    def measure(self, values: Slice) -> None:
        """Nothing."""

    def apply(self, values: Slice) -> None:
        """Nothing."""


FILTERS: dict[str, Callable[..., PrivacyFilter]] = {"clip": Clip, "gaussian": Gaussian, "unsafe-none": UnsafeNone}


@dataclass(frozen=True, slots=True)
class FilterChain:
    """A site's filters in their order, and how they are named in the site's updates."""

    named: tuple[Named, ...]
    filters: tuple[PrivacyFilter, ...]

    def begin(self, dice: Dice) -> None:
        """Begin an update; `dice` gives all its noise (`fresh_dice`).

        Raises:
            ConfigError: the filters cannot work in this order.
        """
        bound: float | None = None
        for each in self.filters:
            bound = each.begin(bound, dice)

    def measuring(self) -> Iterator[tuple[PrivacyFilter, Sequence[PrivacyFilter]]]:
        """Each filter that has to see the whole delta, with those to be applied before it looks."""
        for index, each in enumerate(self.filters):
            if each.measures:
                yield each, self.filters[:index]

    def apply(self, values: Slice) -> None:
        """Change a slice in place by every filter in turn."""
        for each in self.filters:
            each.apply(values)


def build(chosen: Sequence[Named]) -> FilterChain:
    """Make the filters a site has chosen.

    Raises:
        ConfigError: none was chosen, one is unknown or has wrong parameters, or they cannot work in this order.
    """
    if not chosen:
        raise ConfigError("no privacy filter is configured; write `unsafe-none` to share the deltas as they are")
    chain = FilterChain(tuple(chosen), tuple(_make(each) for each in chosen))
    noisy = ""
    for named, each in zip(chain.named, chain.filters, strict=True):
        if each.measures and noisy:
            raise ConfigError(f"the privacy filter {named.name!r} measures the delta and has to come before {noisy!r}")
        noisy = named.name if each.random else noisy
    chain.begin(fresh_dice())
    return chain


def fresh_dice() -> Dice:
    """Dice that nobody can foresee: seeded with 256 bits from the operating system; for one update only."""
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


def _make(named: Named) -> PrivacyFilter:
    factory = FILTERS.get(named.name)
    if factory is None:
        others = entry_points(group=GROUP)
        if named.name not in others.names:
            known = ", ".join(sorted({*FILTERS, *others.names}))
            raise ConfigError(f"there is no privacy filter {named.name!r}; known: {known}")
        factory = others[named.name].load()
    signature = inspect.signature(factory)
    try:
        signature.bind(**named.parameters)
    except TypeError as error:
        said = misfit(error, signature.parameters, named.parameters)
        raise ConfigError(f"privacy filter {named.name!r}: {said}") from error
    return factory(**named.parameters)


def _positive(name: str, parameter: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"privacy filter {name!r}: {parameter} has to be a positive number, not {value!r}")
    return float(value)
