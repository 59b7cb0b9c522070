"""Which sites are live: heard of within three heartbeats."""

from __future__ import annotations

from collections.abc import Iterable

_HEARTBEATS = 3
_MARGIN = 0.01  # seconds; a tick at the exact moment would still find the site live


class Liveness:
    """When each site was last heard of, on the monotonic clock of this process.

    A site that is expected but was never heard of counts from the moment it was expected, so that a restart of the
    aggregator does not declare every site gone.
    """

    def __init__(self, heartbeat: float, sites: Iterable[str], now: float) -> None:
        self._patience = _HEARTBEATS * heartbeat
        self._seen: dict[str, float] = dict.fromkeys(sites, now)

    def seen(self, site: str, now: float) -> None:
        """A sign of life."""
        self._seen[site] = now

    def expect(self, sites: Iterable[str], now: float) -> None:
        """New members: they have three heartbeats to be heard of."""
        for site in sites:
            self._seen.setdefault(site, now)

    def live(self, now: float) -> frozenset[str]:
        """Who was heard of lately."""
        return frozenset(site for site, at in self._seen.items() if now - at <= self._patience)

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each site was heard of, or expected."""
        return {site: now - at for site, at in self._seen.items()}

    def expiring(self, now: float) -> list[float]:
        """When those who are live will no longer be, should nothing be heard of them."""
        times = [at + self._patience + _MARGIN for at in self._seen.values()]
        return [at for at in times if at > now]
