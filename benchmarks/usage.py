"""What a piece of work used: time, processor, page faults, context switches, memory; from the system's own counters."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.pipeline_model import peak_kib


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Counters, or the difference of two readings of them."""

    wall: float
    user: float
    """Seconds of all threads in the program itself."""
    sys: float
    """Seconds of all threads in the kernel on its behalf."""
    faults: int
    """Pages of memory that the kernel gave, or mapped, at their first touch."""
    voluntary: int
    """Times a thread waited: for a file, a lock, another thread."""
    involuntary: int
    """Times a thread was put aside for another."""
    peak: int = 0
    """KiB of resident memory above what was resident at the start; read by `Meter` only."""

    @property
    def cpu(self) -> float:
        """CPU seconds."""
        return self.user + self.sys

    @property
    def kernel(self) -> float:
        """The kernel's share of the processor seconds."""
        return self.sys / self.cpu if self.cpu else 0.0

    def since(self, before: Usage) -> Usage:
        """What was used from an earlier reading to this one."""
        return Usage(
            wall=self.wall - before.wall,
            user=self.user - before.user,
            sys=self.sys - before.sys,
            faults=self.faults - before.faults,
            voluntary=self.voluntary - before.voluntary,
            involuntary=self.involuntary - before.involuntary,
        )


def reading(who: int = resource.RUSAGE_SELF) -> Usage:
    """The counters now: of this process, or with RUSAGE_CHILDREN of all children that have ended."""
    used = resource.getrusage(who)
    return Usage(
        wall=time.perf_counter(),
        user=used.ru_utime,
        sys=used.ru_stime,
        faults=used.ru_minflt,
        voluntary=used.ru_nvcsw,
        involuntary=used.ru_nivcsw,
    )


def forget_peak() -> bool:
    """Have the kernel count this process's peak memory anew from now on; tells whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # some containers mount /proc read-only
        return False
    return True


class Meter:
    """Measures this process from its making to `stop`."""

    def __init__(self) -> None:
        forget_peak()
        self._resident = peak_kib(field="VmRSS")
        self._before = reading()

    def stop(self) -> Usage:
        """What was used so far; where the kernel cannot count the peak anew, it is the process's highest ever."""
        return replace(reading().since(self._before), peak=max(0, peak_kib() - self._resident))
