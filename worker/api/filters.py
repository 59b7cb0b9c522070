"""Privacy filters: what a site does to its delta before any other party sees it, in the order the site wrote down.

Filters see the delta as a stream of slices, twice: first what has to know the whole delta measures it, then every
filter changes each slice in place. Noise is added in the second pass only. All shared tensors count as one vector:
BatchNorm's running statistics are clipped and noised together with the parameters. (Noise may turn a small running
variance negative; sites that add noise exclude such statistics or train models with GroupNorm.)

Third parties register a class in the entry-point group `fledge.filters`.
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import structlog
from numpy.typing import NDArray

from broker.runtime.plugins import ExtensionPoint
from protocol import limits
from protocol.codec import Value
from protocol.errors import ConfigError, TrainingError
from protocol.messages import Named

Slice = NDArray[np.float32]
Dice = np.random.Generator
_log = structlog.get_logger(__name__)


class PrivacyFilter(ABC):
    """One filter of a site: `apply`, and whatever differs from the defaults below.

    Made once, with the parameters of its `[[filters]]` as keyword arguments; used for one update after the other, by
    one thread.
    """

    measures: ClassVar[bool] = False
    """Whether it has to see the whole delta before it can change any of it."""
    random: ClassVar[bool] = False
    """Whether it draws dice; nothing that measures may come after it."""

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        """Begin an update whose delta has an L2 norm of at most `bound`; returns the bound of what comes out.

        None is no bound, which is what is returned by default.

        Raises:
            ConfigError: the filter needs a bound and there is none.
        """
        return None

    def measure(self, values: Slice) -> None:  # noqa: B027 - most filters measure nothing
        """Look at a slice; all slices come in order. Called only if `measures`."""

    @abstractmethod
    def apply(self, values: Slice) -> None:
        """Change a slice in place. May be called for the whole delta several times if a later filter measures."""


class Clip(PrivacyFilter):
    """Scales the delta down to an L2 norm of at most `norm` (McMahan et al. 2018, flat clipping)."""

    measures: ClassVar[bool] = True

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


class Gaussian(PrivacyFilter):
    """Adds normal noise of standard deviation `noise_multiplier` × clip norm to every shared value.

    Noise is drawn in float32; attacks on the rounding of floating-point noise are not defended against.
    """

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

    def apply(self, values: Slice) -> None:
        if self._dice is None:
            raise ConfigError("the privacy filter `gaussian` was used before it was begun")
        noise = self._noise[: values.size]
        self._dice.standard_normal(dtype=np.float32, out=noise)
        noise *= self._sigma
        values += noise


class UnsafeNone(PrivacyFilter):
    """Shares the delta as it is, and says so in the log each time; deltas can give training data away."""

    def begin(self, bound: float | None, dice: Dice) -> float | None:
        _log.warning("privacy.off", filter="unsafe-none")
        return bound

    def apply(self, values: Slice) -> None:
        """Nothing."""


FILTERS = ExtensionPoint[PrivacyFilter](
    "fledge.filters", "privacy filter", {"clip": Clip, "gaussian": Gaussian, "unsafe-none": UnsafeNone}
)


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
            bound = _sound(each, each.begin(bound, dice))

    def measuring(self) -> Iterator[tuple[PrivacyFilter, Sequence[PrivacyFilter]]]:
        """Each filter that has to see the whole delta, with those to be applied before it looks."""
        for index, each in enumerate(self.filters):
            if each.measures:
                yield each, self.filters[:index]

    def apply(self, values: Slice) -> None:
        """Change a slice in place by every filter in turn."""
        for each in self.filters:
            change(each, values)


def change(by: PrivacyFilter, values: Slice) -> None:
    """Change a slice in place by one filter.

    Raises:
        TrainingError: it gave other values back instead, and what it was to hide is there still.
    """
    apply: Callable[[Slice], object] = by.apply
    given = apply(values)
    if given is not None and given is not values:
        raise TrainingError(
            f"the privacy filter {type(by).__name__} returns values instead of changing those it is given; "
            "nothing was sent. Let apply write into its argument, as in values[...] = other"
        )


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


def privacy_filters(*tables: Mapping[str, Value]) -> FilterChain:
    """The filters of these tables in their order, each as a `[[filters]]` of `worker.toml`: its name, its parameters.

    Raises:
        ConfigError: as for a site's own.
    """
    try:
        return build(
            [
                Named(name=str(each["name"]), parameters={key: value for key, value in each.items() if key != "name"})
                for each in tables
            ]
        )
    except KeyError:
        raise ConfigError('a privacy filter has no name; write {"name": "clip", "norm": 1.0}') from None


def fresh_dice() -> Dice:
    """Dice that cannot be foreseen: seeded with 256 bits from the operating system; for one update only."""
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


def _make(named: Named) -> PrivacyFilter:
    made = FILTERS.build(named.name, named.parameters)
    missing = [each for each in ("measures", "random", "begin", "measure", "apply") if not hasattr(made, each)]
    if missing:
        raise ConfigError(
            f"the privacy filter {named.name!r} is not complete: it lacks {', '.join(missing)}; "
            "derive it from fledge.PrivacyFilter"
        )
    return made


def _sound(by: PrivacyFilter, bound: object) -> float | None:
    """A bound as it was given, or an error: noise would be drawn by it, and by zero or a negative number none."""
    if bound is None:
        return None
    if isinstance(bound, bool) or not isinstance(bound, int | float | np.floating) or not 0 < bound < math.inf:
        raise ConfigError(
            f"the privacy filter {type(by).__name__}: begin returns {bound!r} as the norm of what comes out; "
            "it has to be a positive number, or None where nothing is known"
        )
    return float(bound)


def _positive(name: str, parameter: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"privacy filter {name!r}: {parameter} has to be a positive number, not {value!r}")
    return float(value)
