"""Workers as processes of their own: started, waited for, and stopped with what they wrote kept beside their kits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from protocol.errors import TrainingError

LOG = "worker.log"
_START_S = 120.0
_STOP_S = 20.0


class WorkerProcesses:
    """One `fledge worker` per kit."""

    def __init__(self, kits: Mapping[str, Path], died: Callable[[str], None]) -> None:
        """Start them all; `died` is called with a site's name when its process ends before `stop`."""
        self._died = died
        self._changed = threading.Condition()
        self._waiting = set(kits)
        self._stopping = False
        self._logs = {site: kit.parent / LOG for site, kit in kits.items()}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []
        for site, kit in kits.items():
            # Without -P it would import what lies where the demo was started, a protocol.py of the user's for example.
            command = [sys.executable, "-P", "-m", "fledge.cli.worker_process"]
            command += ["--json-logs", "worker", "--config", str(kit)]
            # A Ctrl-C at the terminal is for the demo alone; it stops its workers in order.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self._processes[site] = process
            thread = threading.Thread(target=self._follow, args=(site, process), name=f"{site} log", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait_until_started(self) -> None:
        """Return once every worker listens.

        Raises:
            TrainingError: one ended, or two minutes were not enough.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._ended(), _START_S)
            late = sorted(self._waiting)
        if late:
            raise TrainingError(f"the worker of {late[0]} did not start; its log is {self._logs[late[0]]}")

    def stop(self) -> None:
        """Stop them in order; one that does not obey is killed."""
        self._stopping = True
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for thread in self._threads:
            thread.join(_STOP_S)

    def _ended(self) -> bool:
        return any(process.poll() is not None for process in self._processes.values())

    def _follow(self, site: str, process: subprocess.Popen[str]) -> None:
        with self._logs[site].open("w", encoding="utf-8") as log, process.stderr or open("/dev/null") as lines:
            for line in lines:
                log.write(line)
                log.flush()
                if '"worker.started"' in line:
                    with self._changed:
                        self._waiting.discard(site)
                        self._changed.notify_all()
        process.wait()
        with self._changed:
            self._changed.notify_all()
        if not self._stopping:
            self._died(site)
