"""The counters that benchmarks read: each goes up by what was done, and nothing before the start counts."""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks.usage import Meter, Usage, forget_peak, reading

_MIB = 1 << 20


def busy(seconds: float) -> None:
    """Compute for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_all_threads_count_and_what_was_before_does_not() -> None:
    busy(0.1)
    meter = Meter()
    others = [threading.Thread(target=busy, args=(0.1,)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    used = meter.stop()
    assert used.cpu == pytest.approx(0.2, abs=0.08)
    assert used.wall >= 0.1
    assert used.voluntary >= 1


def test_memory_is_counted_from_the_start_of_a_meter() -> None:
    # In a process of its own: this one may give back meanwhile what other tests have left.
    code = "from tests.unit.benchmarks.test_usage import peaks; print(*peaks())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    could, held, nothing = map(int, done.stdout.split())
    assert could
    assert held * 1024 == pytest.approx(64 * _MIB, abs=4 * _MIB)
    assert nothing < 4096


def peaks() -> tuple[int, int, int]:
    """Whether the kernel counts anew, the KiB of a process that holds 64 MiB for a moment, and of one that does not."""
    could, meter = forget_peak(), Meter()
    held = np.ones(64 * _MIB, np.uint8)
    del held
    return int(could), meter.stop().peak, Meter().stop().peak


def test_page_faults_are_counted() -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 1000 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapped:
        mapped.madvise(mmap.MADV_NOHUGEPAGE)
        meter = Meter()
        for start in range(0, len(mapped), page):
            mapped[start] = 1
        assert 1000 <= meter.stop().faults < 2000


def test_children_that_have_ended_count() -> None:
    before = reading(resource.RUSAGE_CHILDREN)
    code = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert reading(resource.RUSAGE_CHILDREN).since(before).cpu == pytest.approx(0.2, abs=0.1)


def test_the_kernels_share() -> None:
    used = Usage(wall=1, user=3, sys=1, faults=0, voluntary=0, involuntary=0)
    assert (used.cpu, used.kernel) == (4, 0.25)
    assert used.since(used).kernel == 0.0
