"""The simulation itself: hundreds of seeds hold, every mutant is caught, and a seed is a seed.

Play one seed: `python -m tests.simulation --from 1234 --seeds 1 --last 1000`; many: see `--help`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from aggregator.domain import effects
from tests.simulation.arrivals import play
from tests.simulation.mutants import MUTANTS
from tests.simulation.surroundings import Violation
from tests.simulation.world import Parts, run

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 240
BATCH = 20
ARRIVALS = 12
MUTANT_SEEDS = 200
LONG_SEEDS = 10_000

SIGHTS = (
    *(f"killed before {kind.__name__}" for kind in (effects.Settle, effects.Admit, effects.Publish, effects.PutHead)),
    *("killed before the commit", "killed after the commit", "killed in the transaction, at JournalUpdate"),
    *(
        "killed before Upload",
        "killed before Train",
        "killed before ReportStatus",
        "killed before the journal is loaded",
    ),
    *("fenced", "published again", "journal: Duplicate", "journal: Reused"),
    *("receipt: merged ok", "receipt: superseded newer_updates_wait", "receipt: rejected too_stale"),
    *("receipt: rejected revoked", "receipt: rejected wrong_run", "receipt: rejected not_finite"),
    *("receipt: reupload chunk_missing", "receipt: sequence_reused sequence_gap"),
    *("receipt: run_ended stop-by-operator", "receipt: run_aborted abort-by-operator"),
    *("run: paused", "run: running", "work: merge", "work: reissue", "work: reseal", "update: parked"),
)
"""What the seeds below have to come across, or they prove less than they say."""

seen: Counter[str] = Counter()


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_promise_holds_whatever_is_lost_repeated_reordered_or_killed(first: int) -> None:
    for seed in range(first, first + BATCH):
        seen.update(run(seed).sights)


def test_the_seeds_come_across_everything_they_are_for() -> None:
    if not seen:
        pytest.skip("needs the seeds above in the same process")
    assert [sight for sight in SIGHTS if not seen[sight]] == []


@pytest.mark.parametrize("content", range(ARRIVALS))
def test_the_same_arrivals_end_the_same_way_and_the_history_follows_from_their_order(content: int) -> None:
    for faults in range(2 * content, 2 * content + 2):
        play(content, faults)


def test_other_faults_cut_the_same_arrivals_into_other_versions() -> None:
    assert len({play(1, faults).witness.digest for faults in range(4)}) > 1


@pytest.mark.parametrize("name", MUTANTS)
def test_a_program_with_a_mistake_is_caught(name: str) -> None:
    assert caught(MUTANTS[name], MUTANT_SEEDS), f"the mutant {name!r} survived {MUTANT_SEEDS} seeds"


def caught(parts: Parts, seeds: int) -> bool:
    """Whether one of the seeds objects to such a program."""
    for seed in range(seeds):
        try:
            run(seed, parts)
        except Violation:
            return True
    return False


def test_a_seed_plays_the_same_actions_every_time_and_in_every_process() -> None:
    code = "from tests.simulation.world import run; print(run(7).trace)"
    traces = set()
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        traces.add(int(done.stdout))
    assert traces == {run(7).trace}
    assert run(8).trace not in traces


def test_a_violation_says_what_happened_last_and_how_to_play_it_again() -> None:
    with pytest.raises(Violation, match=r"python -m tests\.simulation --from 0 --seeds 1") as error:
        run(0, MUTANTS["ack before journal"])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("seed 0: Violation: ")
    assert 10 < len(lines) < 60


@pytest.mark.long
def test_ten_thousand_seeds_hold() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", str(LONG_SEEDS), "--processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
