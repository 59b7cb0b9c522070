"""Who gets which examples: pure rules, the same for the same seed on every machine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from protocol.errors import ConfigError

_REDRAWS = 100
"""How often a Dirichlet division is drawn again that leaves a site without examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Indices of examples; nobody's are another's."""

    shares: tuple[tuple[int, ...], ...]
    """Of each site."""
    held_out: tuple[int, ...]

    @property
    def pooled(self) -> tuple[int, ...]:
        """What all sites have together."""
        return tuple(sorted(chain.from_iterable(self.shares)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How to divide.

    Args:
        alpha: Dirichlet's, by class; None: all sites alike.
        held_out: the share that no site gets.
    """

    sites: int
    seed: int
    alpha: float | None = None
    held_out: float = 0.2


def divide(
    examples: int,
    terms: Terms,
    *,
    classes: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Division:
    """Hold a share out, and divide the rest; whole groups go one way, by the class of their first example.

    Raises:
        ConfigError: there are fewer groups (or examples) than sites and the held-out share need.
    """
    units = _units(examples, groups)
    kinds = [0] * len(units) if classes is None else _numbered([classes[unit[0]] for unit in units])
    least = terms.sites + (terms.held_out > 0)
    if len(units) < least:
        what = "examples" if groups is None else "groups of examples (patients)"
        raise ConfigError(
            f"there are {len(units)} {what}, too few for {terms.sites} sites"
            f"{' and some to measure on' if terms.held_out else ''}; take fewer --sites, or more data"
        )
    dice = np.random.default_rng(np.random.SeedSequence([terms.seed, 0xF1ED]))
    by_kind = _by_kind(kinds, dice)
    kept_back = _held_out(by_kind, terms, len(units))
    rest = [[unit for unit in of if unit not in kept_back] for of in by_kind]
    dealt = _alike(rest, terms.sites) if terms.alpha is None else _dirichlet(rest, terms.sites, terms.alpha, dice)
    return Division(
        shares=tuple(_examples(units, share) for share in dealt), held_out=_examples(units, sorted(kept_back))
    )


def _units(examples: int, groups: Sequence[Hashable] | None) -> list[list[int]]:
    if groups is None:
        return [[index] for index in range(examples)]
    found: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return list(found.values())


def _numbered(classes: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(each, len(numbers)) for each in classes]


def _by_kind(kinds: Sequence[int], dice: np.random.Generator) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(max(kinds) + 1)]
    for unit in dice.permutation(len(kinds)).tolist():
        found[kinds[unit]].append(unit)
    return found


def _held_out(by_kind: Sequence[Sequence[int]], terms: Terms, count: int) -> set[int]:
    """The first of every class, so that the share is the same in each, as far as whole units allow."""
    if not terms.held_out:
        return set()
    wanted = min(count - terms.sites, max(1, round(terms.held_out * count)))
    # By how far into its class a unit lies: taking the least makes every class lose the same part.
    ranked = sorted(
        ((place + 0.5) / len(of), kind, unit) for kind, of in enumerate(by_kind) for place, unit in enumerate(of)
    )
    return {unit for _, _, unit in ranked[:wanted]}


def _alike(by_kind: Sequence[Sequence[int]], sites: int) -> list[list[int]]:
    """Dealt like cards, class after class, so that sizes differ by one at most and so does every class."""
    deck = list(chain.from_iterable(by_kind))
    return [deck[site::sites] for site in range(sites)]


def _dirichlet(
    by_kind: Sequence[Sequence[int]], sites: int, alpha: float, dice: np.random.Generator
) -> list[list[int]]:
    shares: list[list[int]] = []
    for _ in range(_REDRAWS):
        shares = [[] for _ in range(sites)]
        for of in by_kind:
            cuts = np.cumsum(dice.dirichlet([alpha] * sites))[:-1]
            bounds = [0, *np.nan_to_num(cuts * len(of)).round().astype(int).tolist(), len(of)]
            for site, (start, stop) in enumerate(pairwise(bounds)):
                shares[site] += of[start:stop]
        if all(shares):
            return shares
    for share in shares:  # a very small alpha: whoever has nothing gets one of the largest site's
        if not share:
            share.append(max(shares, key=len).pop())
    return shares


def _examples(units: Sequence[Sequence[int]], chosen: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(chain.from_iterable(units[unit] for unit in chosen)))
