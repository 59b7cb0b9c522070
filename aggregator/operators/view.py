"""What there is to look at for one operator: all of it, or what is of some sites alone. It is cut down here, once."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Executable, Row, Select, select

from aggregator.domain.state import SiteStatus
from aggregator.journal.history import History
from aggregator.journal.tables import update_times, updates
from aggregator.pipeline.run_context import RunContext
from aggregator.rules.commands import TEXTS
from aggregator.rules.federation import AggregatorRules
from aggregator.rules.run import Run
from protocol import topology
from protocol.codec import Value
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.messages import GOING_ON, Card, RunState
from protocol.registry import Registry

Values = dict[str, Value]
Arguments = Mapping[str, Value]
Found = Row[tuple[object, ...]]
_LINE = 1024


def base64_lines(record: bytes) -> tuple[str, ...]:
    """A signed record as an answer holds it."""
    text = base64.b64encode(record).decode()
    return tuple(text[at : at + _LINE] for at in range(0, len(text), _LINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryContext:
    """What there is to look at."""

    history: History
    rules: AggregatorRules
    serving: Mapping[str, RunContext]
    registry: Registry
    signs: Mapping[str, SiteStatus] = field(default_factory=dict)
    card: Callable[[str, bytes], Card | None]
    """Reads a published model's card: its run's name and the signed record; None if it cannot be read any more."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """Seconds since each site was heard of."""
    depths: Callable[[], Sequence[tuple[str, int | None, int | None]]] | None = None
    only: frozenset[str] | None = None
    """The sites that may be told of; None: all."""

    def narrowed(self, only: frozenset[str] | None) -> QueryContext:
        """What there is to look at for who may be told of these sites alone (None: of all)."""
        if only is None:
            return self
        entries = tuple(entry for entry in self.registry.entries if entry.role == Role.SITE and entry.name in only)
        told = {queue for site in only for queue in topology.queues_of(site)}
        depths = self.depths
        return replace(
            self,
            only=only,
            registry=replace(self.registry, entries=entries),
            signs={site: sign for site, sign in self.signs.items() if site in only},
            seen={site: age for site, age in self.seen.items() if site in only},
            depths=None if depths is None else lambda: [each for each in depths() if each[0] in told],
        )

    def runs(self) -> Mapping[str, Run]:
        """The runs that may be told of: sites hear of a run once it was started."""
        runs = self.rules.runs
        return runs if self.only is None else {n: r for n, r in runs.items() if r.state != RunState.CREATED}

    def site(self, arguments: Arguments) -> str:
        """The site that is asked about: the one named, or the only one that may be told of.

        Raises:
            ConfigError: it is none of those that may be told of, or none was named.
        """
        named = arguments.get("site")
        if named is None and self.only is not None and len(self.only) == 1:
            return next(iter(self.only))
        if self.only is not None and named not in self.only:
            raise ConfigError(f"with your roles you see {', '.join(sorted(self.only))} alone; name a site of these")
        if named is None:
            raise ConfigError("for which site? name one; `site list` shows who there is")
        if all(entry.name != named for entry in self.registry.entries):
            raise ConfigError(f"there is no member {str(named)!r}; `site list` shows who there is")
        return str(named)

    def updates(self) -> Select[tuple[object, ...]]:
        """The updates that may be told of, with their times."""
        told = select(updates, update_times.c.arrived, update_times.c.settled)
        told = told.select_from(updates.outerjoin(update_times, updates.c.id == update_times.c.id))
        return told if self.only is None else told.where(updates.c.site.in_(self.only))

    def run(self, arguments: Arguments) -> Run:
        """The run that is asked about: the one named, the newest of those that go on, or the newest.

        Raises:
            ConfigError: there is no such run.
        """
        runs = self.runs()
        named = arguments.get("run")
        if named is None and runs:
            going_on = [run for run in runs.values() if run.state in GOING_ON]
            return (going_on or list(runs.values()))[-1]
        if named not in runs:
            raise ConfigError(TEXTS["unknown_run" if runs else "no_run"])
        return runs[str(named)]

    def rows(self, statement: Executable) -> list[Found]:
        """What a statement finds."""
        with self.history.engine.connect() as db:
            return list(db.execute(statement))
