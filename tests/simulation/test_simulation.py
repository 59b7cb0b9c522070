"""The simulation itself: hundreds of seeds hold, every mutant is caught, and a seed is a seed.

Play one seed: `python -m tests.simulation --from 1234 --seeds 1 --last 1000`; many: see `--help`.
"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.surroundings import Violation
from tests.simulation.world import Parts, run

SEEDS = 240
BATCH = 20
MUTANT_SEEDS = 60


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_promise_holds_whatever_is_lost_repeated_reordered_or_killed(first: int) -> None:
    for seed in range(first, first + BATCH):
        run(seed)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_program_with_a_mistake_is_caught(name: str) -> None:
    for seed in range(MUTANT_SEEDS):
        try:
            run(seed, MUTANTS[name])
        except Violation:
            return
    pytest.fail(f"the mutant {name!r} survived {MUTANT_SEEDS} seeds")


def test_a_seed_plays_the_same_actions_every_time() -> None:
    assert run(7) == run(7)
    assert run(7, Parts(faults=("takeover",))).trace != run(7).trace
