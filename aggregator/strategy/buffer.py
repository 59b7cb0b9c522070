"""Which waiting updates make the next version, and when: pure selection.

1. A site has at most `quota` updates in one version. Up to `quota` more wait for the next version; beyond that its
   oldest are superseded.
2. K_used = min(K, sites x quota), over the sites that are live or have an update waiting. K_used updates make a
   version. The weighted sum is divided by K_used, also when `max_wait` flushes a buffer that is not full.
3. `max_wait` counts from the first update the buffer could take.
4. Synchronous: one version takes an update from the current version of every live site. Once `min_sites` are there
   the rest have `grace` seconds; the sum is divided by the number that came.
5. With fewer than `min_sites` sites (live or waiting) nothing is merged.
6. First come, first merged: `order` decides, never the sequence the caller passes them in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A validated update that is in no version yet.

    Args:
        order: position in the journal; unique.
        since: when it was validated, in seconds of the aggregator's clock.
    """

    id: bytes
    site: str
    base_version: int
    order: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferPolicy:
    """How a run fills and empties its buffer.

    Args:
        size: K of the strategy, at most 128; the most that enter one version.
        quota: updates of one site in one version.
        max_wait: seconds after which a half-filled buffer is merged (asynchronous).
        grace: seconds stragglers have once `min_sites` are there (synchronous).
    """

    size: int
    quota: int
    min_sites: int
    synchronous: bool
    max_wait: float
    grace: float
    max_staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The next version's members in merge order (never empty), and who leaves the buffer without being merged."""

    members: tuple[Waiting, ...]
    divisor: int
    superseded: tuple[Waiting, ...]
    too_stale: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """Updates that will never be merged."""

    superseded: tuple[Waiting, ...]
    too_stale: tuple[Waiting, ...]


def outdated(waiting: Sequence[Waiting], policy: BufferPolicy, *, version: int) -> Outdated:
    """Return the updates to be receipted as superseded or too stale; ask after every arrival and version."""
    stale = tuple(sorted((w for w in waiting if version - w.base_version > policy.max_staleness), key=_order))
    gone = set(stale)
    per_site = _by_site([w for w in waiting if w not in gone])
    superseded = [w for updates in per_site.values() for w in updates[: max(0, len(updates) - 2 * policy.quota)]]
    return Outdated(superseded=tuple(sorted(superseded, key=_order)), too_stale=stale)


def choose(
    waiting: Sequence[Waiting], policy: BufferPolicy, *, version: int, live: frozenset[str], now: float
) -> Choice | None:
    """Return the next version's members, or None while the buffer is not ready.

    Args:
        version: the current version; staleness is counted from it.
        live: sites with an event or update within three heartbeats.
    """
    out = outdated(waiting, policy, version=version)
    ready = _eligible(waiting, out, policy.quota)
    if not ready:
        return None
    sites = live | {w.site for w in ready}
    size = max(1, min(policy.size, len(sites) * policy.quota))
    members = tuple(ready[:size])
    if len(sites) < policy.min_sites:
        return None
    if policy.synchronous:
        came = {w.site for w in ready}
        if len(came) < policy.min_sites:
            return None
        late = now >= _quorum_at(ready, policy.min_sites) + policy.grace
        if not (live <= came or len(members) == policy.size or late):
            return None
        size = len(members)
    elif len(members) < size and now < _first_since(ready) + policy.max_wait:
        return None
    return Choice(members=members, divisor=size, superseded=out.superseded, too_stale=out.too_stale)


def next_deadline(
    waiting: Sequence[Waiting], policy: BufferPolicy, *, version: int, live: frozenset[str]
) -> float | None:
    """Return when `choose` will say yes without any further event; None if never."""
    ready = _eligible(waiting, outdated(waiting, policy, version=version), policy.quota)
    came = {w.site for w in ready}
    if not ready or len(live | came) < policy.min_sites:
        return None
    if not policy.synchronous:
        return _first_since(ready) + policy.max_wait
    return _quorum_at(ready, policy.min_sites) + policy.grace if len(came) >= policy.min_sites else None


def _first_since(ready: Sequence[Waiting]) -> float:
    return min(w.since for w in ready)


def _order(update: Waiting) -> int:
    return update.order


def _by_site(waiting: Sequence[Waiting]) -> dict[str, list[Waiting]]:
    sites: dict[str, list[Waiting]] = defaultdict(list)
    for update in sorted(waiting, key=_order):
        sites[update.site].append(update)
    return sites


def _eligible(waiting: Sequence[Waiting], out: Outdated, quota: int) -> list[Waiting]:
    """Return what the next version may take, the first `quota` of each site, in order."""
    gone = {*out.superseded, *out.too_stale}
    per_site = _by_site([w for w in waiting if w not in gone])
    return sorted((w for updates in per_site.values() for w in updates[:quota]), key=_order)


def _quorum_at(ready: Sequence[Waiting], min_sites: int) -> float:
    """Return when the `min_sites`-th site's first update began to wait."""
    first: dict[str, float] = {}
    for update in ready:
        first[update.site] = min(first.get(update.site, update.since), update.since)
    return sorted(first.values())[max(1, min_sites) - 1]
