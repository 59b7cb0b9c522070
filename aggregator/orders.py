"""The rules about operators' orders: who is obeyed, once each, and what becomes of sites that were sent away.

1. A counter counts once: lower or equal ones are noted in the ledger and answered no more.
2. Everything else that is genuine is noted, with the reason if it is refused, and answered.
3. What sites are to do is handed to them as it was signed; they check it again.
4. A revoked site is cut off by what an operator signed alone; it stays so until the root's registry says the same, and
   only a key that the root lists anew brings the name back. A quarantined one stays connected, its updates are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aggregator import run_orders
from aggregator.decided import Decided
from aggregator.measures import Measure, Measured
from aggregator.order_events import CommandArrived, SetCounter
from aggregator.run_orders import Present, Verdict
from protocol.commands import COUNTER_AHEAD, ORDERS
from protocol.registry import Registry

REPLAYED = "replayed"
_MEASURES: Mapping[str, Measure] = {
    "site.revoke": "revoked",
    "site.quarantine": "quarantined",
    "site.readmit": "none",
}


class Orders:
    """What operators ordered so far, as far as it matters from now on."""

    def __init__(self, counters: Mapping[str, int], measures: Mapping[str, Measured]) -> None:
        self._counters = dict(counters)
        self._measures = dict(measures)

    # ---- sites

    @property
    def revoked(self) -> frozenset[str]:
        """Sites that operators revoked."""
        return frozenset(site for site, it in list(self._measures.items()) if it.measure == "revoked")

    def quarantined(self, site: str) -> bool:
        """Whether a site's updates are refused."""
        return self.held(site) == "quarantined"

    def held(self, site: str) -> str:
        """`revoked`, `quarantined` or `ok`."""
        noted = self._measures.get(site)
        return "ok" if noted is None or noted.measure == "none" else noted.measure

    def narrowed(self, registry: Registry) -> Registry:
        """The root's registry without whom operators revoked; it keeps its version, which is the root's to count."""
        number = registry.version
        for site in self.revoked:
            registry = registry.revoke(site, version=number)
        return registry

    def follow(self, registry: Registry) -> None:
        """Drop measures that the root has settled: it revoked the site too, or listed it anew with other keys since."""
        held = {entry.name: entry.since for entry in registry.entries if entry.revoked is None}
        settled = [
            site for site in sorted(self.revoked) if held.get(site, registry.version) > self._measures[site].registry
        ]
        for site in settled:
            del self._measures[site]

    def measure(self, event: CommandArrived, registry: int) -> tuple[str, Measured] | None:
        """The site and what a command does to it, if it is of that sort; noted from here on."""
        measure = _MEASURES.get(event.command)
        if measure is None:
            return None
        site = str(event.arguments.get("site", ""))
        self._measures[site] = Measured(measure, registry)
        return site, self._measures[site]

    # ---- orders

    def judge(self, event: CommandArrived, out: Decided, present: Present) -> Verdict:
        """Whether a command is carried out; noted, counted and acked either way."""
        out.settle(event.delivery)
        if event.counter <= self.counter(event):
            verdict = Verdict(REPLAYED)
        else:
            verdict = self._verdict(event, present)
            if event.objection != COUNTER_AHEAD:
                self._counters[_key(event)] = event.counter
                out.write(SetCounter(key=_key(event), counter=event.counter))
        why = verdict.why
        entry = {"operator": event.operator, "command": event.command, "taken": why == "ok", "reason": why}
        entry |= {"run": verdict.run} if verdict.run else {}
        out.audit("command", entry | ({"id": event.id, "sites": event.targets} if event.targets else {}))
        return verdict

    def count(self, event: CommandArrived, out: Decided) -> None:
        """Let an order that found a defect count as given, so that it is not given again."""
        out.settle(event.delivery)
        self._counters[_key(event)] = max(self.counter(event), event.counter)
        out.write(SetCounter(key=_key(event), counter=self._counters[_key(event)]))
        entry = {"operator": event.operator, "command": event.command, "taken": False, "reason": "defect"}
        out.audit("command", entry)

    def counter(self, event: CommandArrived) -> int:
        """The highest counter noted for the key a command is signed with."""
        return self._counters.get(_key(event), 0)

    def _verdict(self, event: CommandArrived, present: Present) -> Verdict:
        why = self._refusal(event, present.sites)
        if why == "ok" and event.command in run_orders.ABOUT_RUNS:
            return run_orders.about_run(event, present)
        return Verdict(run_orders.about_models(event, present.catalogue) if why == "ok" else why)

    def _refusal(self, event: CommandArrived, sites: Collection[str]) -> str:
        order = ORDERS.get(event.command)
        if order is None:
            return "unknown_command"
        if event.objection != "ok":
            return event.objection
        if order.at_sites and not event.targets:
            return "no_site"
        if event.targets and not order.at_sites:
            return "bad_argument"
        named = [*event.targets, *([str(event.arguments.get("site", ""))] if event.command in _MEASURES else [])]
        if any(site not in sites for site in named):
            return "unknown_site"
        if event.command == "site.readmit" and not self.quarantined(named[-1]):
            return "not_quarantined"
        if event.command == "dead.purge" and not isinstance(event.arguments.get("id"), int | None):
            return "bad_argument"
        return "ok"


def _key(event: CommandArrived) -> str:
    return event.signer.hex() or event.operator
