"""`python -m tests.mutation [ROOM …] [--seed N] [--most N] [--seconds S]`: which small faults do the tests miss?"""

from __future__ import annotations

import argparse
import sys

from tests.mutation.trial import ROOMS, attempt


def main() -> None:
    """Try each room and print what survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("room", nargs="*", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, help="mutants of each room; default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each room")
    chosen = parser.parse_args()
    for room in chosen.room or ROOMS:
        result = attempt(room, seed=chosen.seed, most=chosen.most, seconds=chosen.seconds)
        told = f"{len(result.survivors)} of {result.tried - result.equivalent} survived ({result.rate:.1%})"
        sys.stdout.write(f"{room}: {told}, {result.equivalent} more are equivalent\n")
        for mutant in sorted(result.survivors, key=lambda each: (each.path, each.line)):
            sys.stdout.write(f"  line {mutant.line}: {mutant.name}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
