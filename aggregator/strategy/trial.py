"""A strategy from another package is looked at, and tried on four values, before a run may depend on it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from aggregator.strategy.base import MAX_BUFFER, MAX_QUOTA, Scalars, Scratch, Span
from aggregator.strategy.staleness import check_policy
from broker.runtime.plugins import FAILURES
from protocol import limits
from protocol.codec import is_word
from protocol.errors import ConfigError

_SITES = range(1, limits.RECIPIENTS + 1)
"""The rules ask for every number that there is, and have nothing to go by if they get no answer."""
_OLDEST = 2**31
_TRIAL = Scalars(weights=(1.0, 0.5), divisor=2.0, rate=0.5)
_RESERVED = "released"
"""The stream that holds the released average."""


Stranger = Any  # what a plug-in's factory gave: whether it is what it should be is tried here


def check_strategy(made: Stranger, name: str) -> None:
    """Refuse a strategy that is not complete, contradicts itself, or would not merge the same way twice.

    Args:
        name: what it is registered as; version rows name it, so that a replay finds it again.

    Raises:
        ConfigError: says what is missing or wrong.
    """
    said = f"strategy {name!r}"
    try:
        _look_at(said, made, name)
    except ConfigError:
        raise
    except FAILURES as error:  # even an attribute may be code
        raise ConfigError(f"{said} cannot be looked at: {type(error).__name__}: {error}") from error
    _check_merge(said, made)


def _look_at(said: str, made: Stranger, name: str) -> None:
    missing = [each for each in _NEEDED if not hasattr(made, each)]
    if missing:
        raise ConfigError(f"{said} is not complete: it lacks {', '.join(missing)}; derive it from fledge.Strategy")
    if made.name != name:
        raise ConfigError(f'{said} calls itself {made.name!r}, and versions could not be replayed; set name = "{name}"')
    _check_state(said, made.state)
    for flag in ("synchronous", "corrected"):
        if type(getattr(made, flag)) is not bool:
            raise ConfigError(f"{said}: {flag} is {getattr(made, flag)!r}; it has to be True or False")
    if not _is_number(made.rate) or not 0 < made.rate <= 1e6:
        raise ConfigError(f"{said}: rate is {made.rate!r}; it has to be a number above 0 and at most 1e6")
    _check_whole(said, "updates_per_base", made.updates_per_base, 1, MAX_QUOTA)
    check_policy(made.staleness, f"{said}: its staleness")
    for sites in _SITES:
        _check_whole(said, f"buffer_size({sites})", _called(said, made, "buffer_size", sites), 1, MAX_BUFFER)
        oldest = _called(said, made, "max_staleness", sites)
        _check_whole(said, f"max_staleness({sites})", oldest, 0, _OLDEST)
        if made.synchronous and oldest:
            raise ConfigError(
                f"{said} is synchronous and would merge updates {oldest} versions old; a synchronous version takes "
                "those from the current one alone: let max_staleness return 0"
            )


_NEEDED = (
    *("name", "state", "synchronous", "corrected", "rate", "staleness", "updates_per_base"),
    *("buffer_size", "max_staleness", "merge"),
)


def _check_state(said: str, state: Stranger) -> None:
    if not isinstance(state, tuple) or not all(isinstance(each, str) and is_word(each) for each in state):
        raise ConfigError(f'{said}: state is {state!r}; it has to be a tuple of short names, such as ("m", "v")')
    if len({*state, _RESERVED}) <= len(state):
        raise ConfigError(f"{said}: state names a stream twice, or one {_RESERVED!r}, which is fledge's own")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_whole(said: str, what: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{said}: {what} is {value!r}; it has to be a whole number from {least} to {most}")


def _called(said: str, made: Stranger, method: str, *arguments: object) -> Stranger:
    try:
        return getattr(made, method)(*arguments)
    except FAILURES as error:
        raise ConfigError(f"{said}: {method} fails: {type(error).__name__}: {error}") from error


def _check_merge(said: str, made: Stranger) -> None:
    """Merge four values at once and cut in two: the bytes have to be the same, and all of them written."""
    order = ("old", "deltas", "step", "state", "out", "out_state", "scratch")
    try:
        inspect.signature(made.merge).bind(*order)
    except TypeError as error:
        raise ConfigError(f"{said}: merge has to take {', '.join(order)}: {error}") from error
    whole, pieces = _merged(said, made, [slice(0, 4)]), _merged(said, made, [slice(0, 1), slice(1, 4)])
    _merged(f"{said}, where a member lacks the tensor (its delta is None)", made, [slice(0, 4)], lacking=True)
    for stream, values in zip(("the model", *made.state), whole, strict=True):
        if not np.isfinite(values).all():
            raise ConfigError(f"{said}: merge leaves values of {stream} unwritten, or makes them no finite numbers")
    if any(one.tobytes() != other.tobytes() for one, other in zip(whole, pieces, strict=True)):
        raise ConfigError(
            f"{said}: merge gives other values for a span than for its pieces, or for the second time; each value may "
            "follow from its own place and the step alone"
        )


def _merged(said: str, made: Stranger, cuts: Sequence[slice], *, lacking: bool = False) -> list[Span]:
    old = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    deltas = [np.array([0.5, -0.25, 0.0, 2.0], np.float32), np.array([-1.0, 0.125, 1.0, 0.5], np.float32)]
    state = [np.zeros(4, np.float32) for _ in made.state]
    for values in (old, *deltas, *state):
        values.flags.writeable = False
    out = [np.full(4, np.nan, np.float32) for _ in range(1 + len(state))]
    scratch = Scratch(4)
    for cut in cuts:
        given = [deltas[0][cut], None if lacking else deltas[1][cut]]
        targets = [each[cut] for each in out]
        streams = [each[cut] for each in state]
        _called(said, made, "merge", old[cut], given, _TRIAL, streams, targets[0], targets[1:], scratch)
    return out
