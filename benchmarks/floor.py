"""What the stages of a version must cost at least: passes over its bytes, times what a pass costs here and now.

    python -m benchmarks.floor --size-mb 400 --sites 4 [--suite xchacha20]

`Design` says once how many passes each stage needs by what it promises; `floor_calls` times a pass.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from benchmarks.floor_calls import AEGIS256, GB, SUITES, XCHACHA20, Cost, Prices, Suite, measure

LANES = min(2, len(os.sched_getaffinity(0)))
"""Cores that work side by side. Two even where there are more: every stream is one chain of records, in which only the
neighbour's work (fetching and hashing beside the cipher, one stream beside another) overlaps."""
SUITE_HELP = "what models and updates are encrypted with (default: %(default)s)"
FILTER_HELP = "the sites' privacy filter; clip reads the base once more (default: %(default)s)"
SAMPLE_HELP = "MiB that each of the floor's passes is timed with (default: %(default)s)"
_WAITS = ("write", "get", "put")
"""Where a disk or another machine sets the pace, whatever processors there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How often every byte of one model goes through each primitive."""

    read: int = 0
    """From a file in the page cache, into a buffer."""
    write: int = 0
    """Into a new file, to the disk."""
    keep: int = 0
    """Into a new file that need not survive a power cut: the cache in front of a remote store."""
    get: int = 0
    """From a remote store by its own client, which compares the bytes with their name."""
    put: int = 0
    """Into a remote store."""
    encrypt: int = 0
    decrypt: int = 0
    hash: int = 0
    """SHA-256, of ciphertext or plaintext."""
    subtract: int = 0
    """Trained minus base, and whether every value is finite."""
    norm: int = 0
    axpy: int = 0
    """One delta, weighted, added to the sum in float64."""
    average: int = 0
    """The released average from the one before and the new model."""
    copy: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})

    def __mul__(self, times: int) -> Passes:
        return Passes(**{each.name: getattr(self, each.name) * times for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What each stage has to do with every byte, and why. A pass that is not here is one to be got rid of."""

    suite: Suite = XCHACHA20
    remote: bool = False
    """A store behind a network; otherwise a directory on the same disk, in which a second name costs nothing."""
    measuring: bool = True
    """A privacy filter such as `clip` has to know the delta's norm before it changes anything of it."""

    def load(self) -> Passes:
        """A site reads a version, as it was signed, into the trainer's arrays."""
        return self._fetch(1) + Passes(decrypt=1, hash=self._plain_digest, copy=1)

    def form(self) -> Passes:
        """Deltas are never held, so each pass over one decrypts the base again; sealed into the spool, durably."""
        looks = 2 if self.measuring else 1
        delta = Passes(read=1, decrypt=1, subtract=1) * looks
        return delta + Passes(norm=looks - 1, encrypt=1, hash=1 + self._plain_digest, write=1)

    def upload(self) -> Passes:
        """From the spool to a remote store; a directory store takes the spool's file under a second name."""
        return Passes(read=1, put=1) if self.remote else Passes()

    def admission(self) -> Passes:
        """What was signed, decrypted and looked at before anything refers to it."""
        return self._fetch(1) + Passes(decrypt=1, hash=self._plain_digest, norm=1)

    def merge(self, members: int) -> Passes:
        """All deltas beside the old model and the old average, from our own copies, which authenticate each record; a
        new model and a new average, each named by its chunks' hashes, the model by its plaintext's too (a replay
        compares that). The old model is added to the sum like one more delta."""
        streams = members + 2
        inputs = Passes(read=1, decrypt=1) * streams + Passes(axpy=members + 1, average=1)
        stored = Passes(put=1, keep=1) if self.remote else Passes(write=1)
        return inputs + (Passes(encrypt=1, hash=1) + stored) * 2 + Passes(hash=1 + self._plain_digest)

    def version(self, sites: int) -> Passes:
        """One version to which every site gave one update."""
        return (self.load() + self.form() + self.upload() + self.admission()) * sites + self.merge(sites)

    @property
    def _plain_digest(self) -> int:
        return 1 if self.suite.update_digest else 0

    def _fetch(self, times: int) -> Passes:
        """Chunks compared with their names. From a remote store they are kept, because they are read again."""
        return (Passes(get=1, keep=1) if self.remote else Passes(read=1, hash=1)) * times


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that some passes can cost."""

    wall: float
    """Seconds: the processor's on `LANES` cores that never wait for each other, or those of the disk or the remote
    store alone, whichever is more."""
    cpu: float
    """CPU seconds."""
    raw: float
    """Seconds a remote store needs by itself; 0 where there is none."""


def floor(passes: Passes, prices: Prices, size: int) -> Floor:
    """What these passes over `size` bytes cost at least."""
    given = {each.name: getattr(passes, each.name) * size / GB for each in fields(passes)}
    costs = {name: Cost(gb * prices[name].seconds, gb * prices[name].cpu) for name, gb in given.items() if gb}
    cpu = sum(cost.cpu for cost in costs.values())
    waits = [costs[name].seconds for name in _WAITS if name in costs]
    raw = sum(costs[name].seconds for name in ("get", "put") if name in costs)
    return Floor(wall=max([cpu / LANES, *waits]), cpu=cpu, raw=raw)


def price_table(prices: Prices) -> str:
    """A line for each primitive."""
    lines = [f"  {name:10s} {cost.seconds:8.3f} {cost.cpu:8.3f}" for name, cost in sorted(prices.items())]
    return "\n".join([f"  {'one pass':10s} {'s/GB':>8s} {'CPU s/GB':>8s}", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the passes and print the floor of every stage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=400, help="of the model (default: %(default)s)")
    parser.add_argument("--sites", type=int, default=4, help="one update of each is merged (default: %(default)s)")
    parser.add_argument("--suite", choices=SUITES, default=AEGIS256.name, help=SUITE_HELP)
    parser.add_argument("--filter", choices=("clip", "unsafe-none"), default="clip", help=FILTER_HELP)
    parser.add_argument("--sample-mib", type=int, default=64, help=SAMPLE_HELP)
    options = parser.parse_args(arguments)
    design = Design(suite=SUITES[options.suite], measuring=options.filter == "clip")
    with tempfile.TemporaryDirectory(prefix="fledge-floor-") as folder:
        prices = measure(Path(folder), design.suite, size=options.sample_mib << 20)
    print(f"{options.size_mb} MB, {options.sites} sites, {options.suite}, {options.filter}", end=", ")
    print(f"directory store, {LANES} cores")
    print(price_table(prices))
    print(f"  {'stage':10s} {'floor s':>8s} {'CPU s':>8s}")
    stages = {name: getattr(design, name)() for name in ("load", "form", "admission")}
    stages |= {"merge": design.merge(options.sites), "version": design.version(options.sites)}
    for name, passes in stages.items():
        wall, cpu, _ = astuple(floor(passes, prices, options.size_mb * 1_000_000))
        print(f"  {name:10s} {wall:8.3f} {cpu:8.3f}")


if __name__ == "__main__":
    main()
