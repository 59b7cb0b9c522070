"""One of fledge's programs as an operating-system process, kept alive like a supervisor would, killed as planned."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

KILLED = -signal.SIGKILL
_AGAIN = 0.1  # seconds until a dead process is started again
_PATIENCE = 25.0  # seconds after which a kill whose moment does not come happens anyway

_SETPRIV = shutil.which("setpriv")
_LEASH = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []
"""So that no program outlives a test run that is killed itself."""

_BEGIN = {"upload.started": "upload", "admission.started": "admission", "merge.started": "merge"}
_END = {
    **dict.fromkeys(("upload.done", "upload.failed"), "upload"),
    **dict.fromkeys(("update.validated", "update.rejected", "update.parked"), "admission"),
    **dict.fromkeys(("version.committed", "merge.failed", "merge.bad_member", "merge.overflow"), "merge"),
}


@dataclass(frozen=True, slots=True)
class Move:
    """When to kill: at the n-th pass of a labelled crash point, or `delay` seconds after the n-th log event."""

    kind: Literal["label", "event"]
    what: str
    count: int = 1
    delay: float = 0.0

    def __str__(self) -> str:
        return f"{self.what}:{self.count}" + (f"+{self.delay:.3f}s" if self.delay else "")


@dataclass(frozen=True, slots=True)
class Death:
    """One process's end, with what its log proves to have been begun and not ended."""

    program: str
    code: int
    move: Move | None
    planned: bool
    """Whether it died where the move says, not because patience ran out."""
    in_flight: tuple[str, ...]


@dataclass
class _Life:
    """One incarnation."""

    process: subprocess.Popen[str]
    move: Move | None
    passed: int = 0
    begun: dict[tuple[str, Any], None] = field(default_factory=dict)
    planned: bool = False
    ready: bool = False
    """Whether it said that it started; before that it may not have learnt yet to stop in order."""
    timers: list[threading.Timer] = field(default_factory=list)


class Program:
    """A command that is started again whenever it dies, until it is stopped; its log is followed line by line."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], changed: threading.Condition
    ) -> None:
        """`changed` is notified at every log line and death."""
        self.name = name
        self.command = list(command)
        self.log = log
        self.deaths: list[Death] = []
        self.events: list[dict[str, Any]] = []
        """Every JSON line of every life, in order."""
        self.strange: list[str] = []
        """Whatever it said that is no log line: a traceback, a warning of Python's."""
        self.moves: deque[Move] = deque()
        """One is taken by each new life."""
        self._environment = dict(environment)
        self._changed = changed
        self._wanted = False
        self._life: _Life | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"{name} supervisor", daemon=True)
        self._started = threading.Event()

    def start(self) -> None:
        """Start it and keep it alive."""
        self._wanted = True
        self._thread.start()
        self._started.wait(10)

    def kill(self) -> None:
        """SIGKILL the present life; another one follows."""
        life = self._life
        if life is not None and life.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                life.process.kill()

    def stop(self, timeout: float = 40.0) -> int:
        """End it in order and for good; returns the exit code."""
        if self._life is None:
            return 0
        life = self._ready(timeout)
        self._wanted = False
        if life.process.poll() is None:
            life.process.terminate()
        try:
            code = life.process.wait(timeout)
        except subprocess.TimeoutExpired:
            life.process.kill()
            code = life.process.wait()
        self._thread.join(10)
        return code

    def restart(self) -> None:
        """End the present life in order; another one follows."""
        self._ready(30).process.terminate()

    def _ready(self, timeout: float) -> _Life:
        """The present life once it has started, or the last one if there is none."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (self._life and self._life.ready and self._life.process.poll() is None):
                if time.monotonic() > deadline or not self._thread.is_alive():
                    break
                self._changed.wait(0.1)
        if self._life is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._life

    @property
    def pid(self) -> int:
        """The present life's process id."""
        return self._life.process.pid if self._life else 0

    def count(self, event: str, **fields: Any) -> int:
        """How many log lines say this."""
        with self._changed:
            return sum(
                line.get("event") == event and all(line.get(k) == v for k, v in fields.items()) for line in self.events
            )

    def _supervise(self) -> None:
        while self._wanted:
            life = self._begin()
            self._follow(life)
            code = life.process.wait()
            for timer in life.timers:
                timer.cancel()
            in_flight = tuple(f"{kind} {what}" for kind, what in life.begun)
            with self._changed:
                self.deaths.append(Death(self.name, code, life.move, life.planned, in_flight))
                self._changed.notify_all()
            if code not in (KILLED, 0):
                return  # it ended by itself, which no program may do; the checks find it
            if self._wanted:
                time.sleep(_AGAIN)

    def _begin(self) -> _Life:
        move = self.moves.popleft() if self.moves else None
        environment = {**os.environ, **self._environment}
        environment.pop("FLEDGE_CRASH_AT", None)
        if move is not None and move.kind == "label":
            environment["FLEDGE_CRASH_AT"] = f"{move.what}:{move.count}"
        process = subprocess.Popen(
            [*_LEASH, *self.command],
            env=environment,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._life = life = _Life(process, move)
        if move is not None:
            self._later(life, _PATIENCE, planned=False)
        self._started.set()
        return life

    def _later(self, life: _Life, seconds: float, *, planned: bool) -> None:
        def kill() -> None:
            if life.process.poll() is None:
                life.planned = planned
                life.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        life.timers.append(timer)
        timer.start()

    def _follow(self, life: _Life) -> None:
        with self.log.open("a", encoding="utf-8") as log, life.process.stderr or open(os.devnull) as lines:
            log.write(json.dumps({"event": "rig.started", "pid": life.process.pid, "move": str(life.move)}) + "\n")
            for line in lines:
                log.write(line)
                log.flush()
                if line.startswith("crash point "):
                    life.planned = True
                    continue
                try:
                    said = json.loads(line)
                except ValueError:
                    self.strange.append(line)
                    continue
                if isinstance(said, dict):
                    self._take(life, said)

    def _take(self, life: _Life, said: dict[str, Any]) -> None:
        event = said.get("event")
        if event in _BEGIN:
            life.begun[_BEGIN[event], said.get("update", said.get("version"))] = None
        elif event in _END:
            life.begun.pop((_END[event], said.get("update", said.get("version"))), None)
        if event in ("aggregator.started", "worker.started"):
            life.ready = True
        move = life.move
        if move is not None and move.kind == "event" and move.what == event:
            life.passed += 1
            if life.passed == move.count:
                self._later(life, move.delay, planned=True)
        with self._changed:
            self.events.append(said)
            self._changed.notify_all()


def wait_for(changed: threading.Condition, done: Callable[[], bool], what: Callable[[], str], timeout: float) -> None:
    """Wait until `done`; it is looked at whenever something is logged, and ten times a second.

    Raises:
        AssertionError: the time is up; `what` says what is missing.
    """
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:.0f} s: {what()}")
        with changed:
            changed.wait(0.1)
