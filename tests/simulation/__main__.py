"""Many seeds on several cores: `python -m tests.simulation --seeds 10000 --processes 2 [--from N]`."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from tests.simulation.surroundings import Violation
from tests.simulation.world import LAST, Told, run


def play(seed: int, last: int) -> Told | str:
    """What came of a seed, or what it broke and the last actions before."""
    try:
        return replace(run(seed, last=last), sights=Counter())
    except Violation as violation:
        return str(violation)


def main() -> int:
    """Play the seeds, print every violation and one line at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--last", type=int, default=LAST)
    options = parser.parse_args()
    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    if options.processes == 1:
        results = [play(seed, options.last) for seed in seeds]
    else:
        with ProcessPoolExecutor(options.processes) as pool:
            results = list(pool.map(partial(play, last=options.last), seeds, chunksize=20))
    told = [result for result in results if isinstance(result, Told)]
    broken = [result for result in results if isinstance(result, str)]
    sys.stdout.writelines(f"{violation}\n\n" for violation in broken[:20])
    seconds = time.monotonic() - began
    histories = hashlib.sha256(repr([(t.seed, t.actions, t.trace) for t in told]).encode()).hexdigest()
    sys.stdout.write(
        f"simulation: {len(seeds)} seeds from {options.first}, {len(broken)} violations, "
        f"{sum(t.actions for t in told)} actions, {sum(t.updates for t in told)} updates, "
        f"{sum(t.version for t in told)} versions, {sum(t.crashes for t in told)} crashes, "
        f"histories {histories[:16]}, "  # the same before and after a change that is to change nothing
        f"{seconds:.0f} s ({len(seeds) / seconds:.1f} seeds/s)\n"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
