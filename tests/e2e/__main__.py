"""`python -m tests.e2e --kills 30 --seed 7`: the long ordeal by hand; the same seed makes the same plan again."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from fledge.process import log
from tests.e2e.long import out, report, run


def main() -> int:
    """Run it once; the exit code says whether every promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--minutes", type=float, default=15.0, help="time the kills may take")
    parser.add_argument("--keep", type=Path, default=None, help="a new directory for files and logs")
    given = parser.parse_args()
    log.configure()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    out(f"seed={seed}")
    ordeal = run(seed, given.kills, minutes=given.minutes, keep=given.keep)
    out(report(ordeal))
    return 1 if ordeal.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
