"""The long ordeal: servers of its own, a plan from a seed, one line at the end."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.checks import tally, violations
from tests.e2e.killer import carry_out, deal, in_flight, make_plan
from tests.e2e.program import Death
from tests.e2e.rig import SITES, Rig
from tests.support.rabbit import RabbitNode, RabbitVhost
from tests.support.s3 import S3Server

LARGE = 5_000_000
"""float32 values: a model of 20 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """What came of it."""

    seed: int
    deaths: tuple[Death, ...]
    violations: tuple[str, ...]
    summary: str

    @property
    def by_program(self) -> Counter[str]:
        """Kills of each process."""
        return Counter(death.program for death in self.deaths)

    @property
    def in_flight(self) -> int:
        """Kills with an upload, admission or merge in flight."""
        return in_flight(self.deaths)


def run(seed: int, kills: int, *, minutes: float = 15.0, keep: Path | None = None) -> Ordeal:
    """Train under `kills` kills, then check everything; `minutes` is the time the kills may take."""
    with tempfile.TemporaryDirectory(prefix="fledge-ordeal-") as scratch:
        directory = keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        node = RabbitNode()
        try:
            node.start()
            s3 = S3Server(Path(scratch) / "objects", directory / "s3.log")
            try:
                return _ordeal(seed, kills, minutes, directory, RabbitVhost(node), s3)
            finally:
                s3.stop()
        finally:
            node.close()


def _ordeal(seed: int, kills: int, minutes: float, directory: Path, vhost: RabbitVhost, s3: S3Server) -> Ordeal:
    plan = make_plan(seed, SITES, kills)
    try:
        with Rig(directory, vhost, s3, elements=LARGE) as rig:
            deal(rig, plan)
            rig.start()
            deaths = carry_out(rig, plan, minutes * 60)
            rig.finish(timeout=180)
            rig.stop()
            broken = violations(rig)
            numbers = tally(rig)
    finally:
        vhost.close()
    replayed = "differs" if any("replay" in finding for finding in broken) else "identical"
    summary = (
        f"seed={seed} kills={len(deaths)} in_flight={in_flight(deaths)} updates={numbers.updates} "
        f"merged={numbers.merged} rejected={numbers.rejected} versions={numbers.versions} replay={replayed}"
    )
    return Ordeal(seed=seed, deaths=tuple(deaths), violations=tuple(broken), summary=summary)


def report(ordeal: Ordeal) -> str:
    """The deaths, the violations if there are any, and the summary as the last line."""
    lines = [
        f"{death.program:<12}{death.move!s:<32}{'as planned' if death.planned else 'when patience ran out':<24}"
        f"{', '.join(death.in_flight) or '-'}"
        for death in ordeal.deaths
    ]
    kinds = " ".join(f"{name}={count}" for name, count in sorted(ordeal.by_program.items()))
    return "\n".join([*lines, *(f"VIOLATED: {finding}" for finding in ordeal.violations), kinds, ordeal.summary])


def out(text: str) -> None:
    """Show a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
