"""The demo's worker processes: none outlives the demo, however that ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PARENT = """
import sys
from pathlib import Path
from fledge.demo.processes import WorkerProcesses
from fledge.federation import new_federation

place, sites = Path(sys.argv[1]), ["north", "south"]
nobody = "amqp://127.0.0.1:1/none"
new_federation(place, name="f", sites=sites, broker=nobody, store=f"file://{place}/store",
               trainer="fledge.demo.task:trainer", options={site: {"seed": 1, "hospitals": 2} for site in sites})
workers = WorkerProcesses({site: place / "sites" / site / "worker.toml" for site in sites}, lambda site: None)
workers.wait_until_started()
print(*(process.pid for process in workers._processes.values()), flush=True)
if sys.stdin.readline():
    workers.stop()
"""


def parent(place: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that has started two workers, and something to wait by for each worker's end."""
    command = [sys.executable, "-P", "-c", PARENT, str(place)]
    folder = place.parent / "users"
    folder.mkdir()
    (folder / "protocol.py").write_text("raise RuntimeError('the folder of the demo is no place of ours')")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout is not None
    return process, [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]


def ended(workers: list[int]) -> bool:
    """Whether all of them end within a while."""
    found = [bool(select.select([worker], [], [], 20)[0]) for worker in workers]
    for worker in workers:
        if not select.select([worker], [], [], 0)[0]:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)
    return all(found)


def test_workers_end_with_the_demo_that_is_killed(tmp_path: Path) -> None:
    process, workers = parent(tmp_path / "f")
    with process:
        assert len(workers) == 2
        assert not any(select.select([worker], [], [], 0)[0] for worker in workers)
        process.kill()
        assert ended(workers)


def test_workers_are_stopped_in_order_by_the_demo_that_ends(tmp_path: Path) -> None:
    process, workers = parent(tmp_path / "f")
    with process:
        process.communicate("stop\n", timeout=60)
        assert process.returncode == 0
        assert ended(workers)
    for site in ("north", "south"):
        assert '"worker.stopped"' in (tmp_path / "f" / "sites" / site / "worker.log").read_text()
