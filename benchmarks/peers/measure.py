"""What a job costs: the processor time and the memory of every process below this one, and the row that it prints."""

from __future__ import annotations

import argparse
import bisect
import ctypes
import importlib.metadata
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY_S = 0.1
_END_S = 15
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
HEADINGS = (
    *("system", "MB", "sites", "versions", "wall s a version", "processor s a version", "user", "sys"),
    *("processor s in all", "server MiB", "largest client MiB"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How large, at how many sites, and how often."""

    size_mb: int
    sites: int
    versions: int

    @classmethod
    def parse(cls, description: str, arguments: Sequence[str] | None = None) -> Job:
        """From the command line."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--size-mb", type=int, default=100, help="of the model (default: %(default)s)")
        parser.add_argument(
            "--sites", type=int, default=4, help="each gives an update to every version (default: %(default)s)"
        )
        parser.add_argument("--versions", type=int, default=3, help="until when it trains (default: %(default)s)")
        options = parser.parse_args(arguments)
        return cls(size_mb=options.size_mb, sites=options.sites, versions=options.versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one job cost."""

    wall: float
    """Seconds from the start of the first round to the last aggregate."""
    user: float
    """Processor seconds of all processes within that time."""
    system: float
    everything: float
    """Processor seconds of all processes with the start and the end of the servers."""
    server_kib: int
    """Peak of the server's largest process."""
    client_kib: int
    """Peak of the largest process of any client."""

    def row(self, name: str, job: Job) -> str:
        """One line of the table."""
        seconds = (self.wall, self.user + self.system, self.user, self.system)
        numbers = [f"{value / job.versions:.1f}" for value in seconds]
        numbers += [f"{self.everything:.0f}", f"{self.server_kib / 1024:.0f}", f"{self.client_kib / 1024:.0f}"]
        return _line([name, str(job.size_mb), str(job.sites), str(job.versions), *numbers])


def installed(distribution: str, usage: str) -> str:
    """A system's version; where it is missing, end and say how to install it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{distribution} is not installed for {sys.executable}.\n\n{usage}")


def table(*rows: str) -> str:
    """The headings and these rows, as Markdown."""
    return "\n".join((_line(HEADINGS), _line(["---"] * len(HEADINGS)), *rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True)
class Seen:
    """One process, as it was when last seen."""

    command: str
    user: float
    system: float
    peak_kib: int


class Watch:
    """Looks at all processes below this one ten times a second; when left, ends those that still run.

    This process becomes the parent of those whose parent ends before them, so that daemons are counted too.
    """

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], Seen] = {}
        """By process id and start, because ids are used again."""
        self._moments: list[tuple[float, float, float]] = []
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        end_all()

    def _run(self) -> None:
        left = False
        while not left:
            left = self._left.wait(_LOOK_EVERY_S)  # one look more, at what is about to be ended
            for pid in below(os.getpid()):
                with suppress(OSError, LookupError):  # it has just ended
                    start, seen = look(pid)
                    self.seen[pid, start] = seen
            used = self.seen.values()
            self._moments.append((time.time(), sum(each.user for each in used), sum(each.system for each in used)))

    def figures(self, began: float, ended: float, *, server: Sequence[str], client: Sequence[str]) -> Figures:
        """The cost of a job, once the watch is left, whose rounds lasted from `began` to `ended` (time.time()).

        `server` and `client` are parts of the command lines by which their processes are known.
        """
        before, after = self._used(began), self._used(ended)
        all_ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Figures(
            wall=ended - began,
            user=after[0] - before[0],
            system=after[1] - before[1],
            everything=all_ended.ru_utime + all_ended.ru_stime,
            server_kib=largest(self.seen.values(), server),
            client_kib=largest(self.seen.values(), client),
        )

    def _used(self, at: float) -> tuple[float, float]:
        index = min(bisect.bisect_left(self._moments, (at,)), len(self._moments) - 1)
        return self._moments[index][1:]


def largest(processes: Iterable[Seen], parts: Sequence[str]) -> int:
    """The highest peak of the processes whose command line has one of these parts.

    Raises:
        LookupError: there is none.
    """
    peaks = [each.peak_kib for each in processes if any(part in each.command for part in parts)]
    if not peaks:
        raise LookupError(f"no process of {', '.join(parts)} was seen")
    return max(peaks)


def below(pid: int) -> list[int]:
    """The ids of all processes below one."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    pending = [pid]
    while pending:
        mine = children.get(pending.pop(), [])
        found += mine
        pending += mine
    return found


def _parents() -> Mapping[int, int]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                found[int(folder.name)] = int(_stat(folder)[1])
    return found


def _stat(folder: Path) -> list[str]:
    """The fields behind the name, which may hold spaces itself: state, parent, ..."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def look(pid: int) -> tuple[str, Seen]:
    """A process's start and what it has used so far; a kernel without memory figures for it raises LookupError."""
    folder = Path("/proc", str(pid))
    stat = _stat(folder)
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0])
    return stat[19], Seen(command, int(stat[11]) * _TICK_S, int(stat[12]) * _TICK_S, peak)


def end_all() -> None:
    """End every process below this one, and wait for them."""
    sent, deadline = signal.SIGTERM, time.monotonic() + _END_S
    while True:
        for pid in below(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, sent)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                continue
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            sent = signal.SIGKILL
        time.sleep(_LOOK_EVERY_S)
