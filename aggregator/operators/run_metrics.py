"""What operators are told of a run's learning: losses of trainings, what versions came to, and what is amiss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import Executable, Row, literal_column, select

from aggregator.journal.tables import reports
from aggregator.rules.run import Run
from protocol import limits
from protocol.codec import Value, decode
from protocol.metrics import key_of

Rows = Callable[[Executable], list[Row[tuple[object, ...]]]]
_NAMES = 20


def outcome(run: Run) -> dict[str, Value]:
    """What the run's versions came to at the sites: the metric, its newest and its best value, and what is amiss."""
    name, direction = run.metric
    told: dict[str, Value] = {}
    if name:
        told |= {"metric": name, "better": "more" if direction == "max" else "less"}
    history = run.evaluations.history(name) if name else []
    if history:
        told |= {"measured": history[-1].value, "measured_version": history[-1].version}
    if (best := run.best) is not None:
        told |= {"best": best.value, "best_version": best.version}
    note = amiss(run)
    return told | ({"note": note} if note else {})


def by_version(run: Run) -> dict[int, float]:
    """What each version came to, by the metric that versions are compared by."""
    name, _ = run.metric
    return {score.version: score.value for score in run.evaluations.history(name)} if name else {}


def amiss(run: Run) -> str:
    """Why the metric that is to end the run cannot, in one sentence; empty if it can."""
    wanted, names = run.rules.stopping.metric, run.evaluations.names()
    if wanted is None:
        return ""
    reporting = len(run.evaluations.reporters(wanted))
    if not reporting and run.evaluations.measuring:
        said = ", ".join(names[:_NAMES]) or "no number at all"
        return f"no site reports {wanted}, which the run is to be compared by; they report {said}"
    able = run.able(wanted)
    if reporting and (others := len(run.evaluations.measuring) - reporting):
        return f"{others} of {reporting + others} sites that measure do not report {wanted}, and are left out of it"
    if reporting and reporting * 2 <= len(able):
        return f"{wanted} does not count yet: {reporting} of {len(able)} sites report it, and more than half have to"
    return ""


def of_sites(run: Run, rows: Rows, sites: list[str]) -> Mapping[str, tuple[float | None, float | None]]:
    """For each site the loss of its newest training (or what it reports instead), and what it measured last."""
    measured = run.evaluations.newest(run.metric[0])
    return {site: (_loss(rows, run.name, site), measured.get(site)) for site in sites}


def _loss(rows: Rows, run: str, site: str) -> float | None:
    own = select(reports.c.metrics).where(reports.c.run == run, reports.c.site == site)
    found = rows(own.order_by(literal_column("rowid").desc()).limit(1))
    metrics = decode(dict[str, float], found[0].metrics, limits.BODY) if found else {}
    return metrics.get("loss", metrics.get(key_of(metrics)))
