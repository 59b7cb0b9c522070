"""Signs of health that a service leaves for its supervisor: when the other side last accepted it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from broker.runtime.json_files import read_note, write_note, write_words
from protocol.errors import StateError

HEALTH = "health.json"
HEALTHY = "healthy"
"""The file beside it that holds one integer: until when the service counts as healthy, in seconds since the epoch.

An engine compares it with `date +%s`, which costs nothing: `fledge healthcheck` starts Python each time.
"""
SITE_LONGEST_S = 1800.0
HUB_LONGEST_S = 120.0
"""How long ago a service may have been accepted last."""
_RED = ("revoked", "login_refused", "store_failing", "ended")
"""What is red however fresh the acceptance is."""


class Health:
    """What a service notes of its health, for `trouble`; safe from any thread."""

    def __init__(self, path: Path, longest: float) -> None:
        """Nothing is written yet; an acceptance holds for `longest` seconds."""
        self._path = path
        self._longest = longest
        self._lock = threading.Lock()
        self._began = time.time()
        self._accepted: float | None = None
        self._more: dict[str, object] = {}

    def begin(self) -> None:
        """Take away what the process before has left: this one was not accepted yet.

        Raises:
            StateError: the file cannot be written.
        """
        with self._lock:
            self._write()

    def accepted(self) -> None:
        """The other side (the hub, or for a hub its broker) has accepted this process just now.

        Raises:
            StateError: the file cannot be written.
        """
        with self._lock:
            self._accepted = time.time()
            self._write()

    def revoked(self, revoked: bool) -> None:
        """Whether the federation has revoked this site."""
        self._note("revoked", True if revoked else None)

    def let_in(self, let_in: bool) -> None:
        """Whether the broker takes this service's login."""
        self._note("login_refused", None if let_in else True)

    def store(self, failing_since: float | None) -> None:
        """Since when (seconds since the epoch) everything asked of the store has failed; None: the last was done."""
        self._note("store_failing", failing_since)

    def stuck(self, why: str) -> None:
        """What keeps the service from its work though it is healthy, in one sentence; empty: nothing."""
        if (why or None) != self._more.get("stuck"):
            self._note("stuck", why or None)

    def ended(self) -> None:
        """The process ends in order."""
        self._note("ended", time.time())

    def _note(self, what: str, value: object) -> None:
        with self._lock, suppress(StateError):  # a note that grows old is red by itself
            self._more[what] = value
            self._write()

    def _write(self) -> None:
        write_health(self._path, self._accepted, self._began, **self._more)
        red = any(self._more.get(reason) is not None for reason in _RED)
        until = 0 if red or self._accepted is None else int(self._accepted + self._longest)
        write_words(self._path.with_name(HEALTHY), f"{until}\n")


def write_health(path: Path, accepted: float | None, started: float, **more: object) -> None:
    """Note when this process was last accepted (None: not yet) and began, in seconds since the epoch, and `more`.

    Raises:
        StateError: the file cannot be written.
    """
    pid = os.getpid()
    said = {what: value for what, value in more.items() if value is not None}
    write_note(path, {"accepted": accepted, "pid": pid, "started": started, "born": born(pid), **said})


def trouble(path: Path, now: float, longest: float) -> str:
    """Why the service that writes `path` is not healthy, in one sentence; empty if it is.

    Args:
        path: where it notes its health.
        now: seconds since the epoch.
        longest: seconds that its last acceptance may lie back.

    Raises:
        StateError: the file cannot be read.
    """
    note = read_note(path)
    accepted, pid, started, birth = (note.get(key) for key in ("accepted", "pid", "started", "born"))
    if not isinstance(pid, int) or pid <= 0 or not isinstance(started, int | float):
        return f"{path.name} says nothing: the service has never started here; start it"
    if not _still(pid, birth) or note.get("ended"):
        return "the process has ended; start it"
    if note.get("revoked"):
        return "revoked: this site is no longer in the federation; it trains and sends nothing: ask the operators"
    if note.get("login_refused"):
        return "the broker refuses this login: it was revoked, or the hub has not run `fledge deploy broker` for it yet"
    if not isinstance(accepted, int | float) or accepted < started:
        since = f"since it started{_at(started)}"
        return f"the process runs, but has not been accepted {since}"
    if abs(now - accepted) > longest:
        ago = f"{abs(now - accepted) / 60:.0f} minutes ago{_at(accepted)}"
        return f"the process runs, but was last accepted {ago}"
    failing = note.get("store_failing")
    if isinstance(failing, int | float):
        lasting = f"{max(0.0, now - failing) / 60:.0f} minutes{_at(failing)}"
        return f"the store has failed at everything asked of it for {lasting}"
    return ""


def stuck(path: Path) -> str:
    """What keeps a healthy service that writes `path` from its work, in one sentence; empty if nothing does.

    Raises:
        StateError: the file cannot be read.
    """
    return str(read_note(path).get("stuck") or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that noted its health and did not say that it ended."""

    pid: int
    runs: bool
    """Whether it is still there, on this machine."""


def last_holder(path: Path) -> Holder | None:
    """Who noted its health at `path` last, unless it ended in order or there was no one.

    Raises:
        StateError: the file cannot be read.
    """
    note = read_note(path)
    pid, birth = note.get("pid"), note.get("born")
    if not isinstance(pid, int) or pid <= 0 or isinstance(note.get("ended"), int | float):
        return None
    return Holder(pid=pid, runs=_still(pid, birth))


def _still(pid: int, birth: object) -> bool:
    return lives(pid) and not (isinstance(birth, int) and born(pid) not in (birth, 0))


def _at(seconds: float) -> str:
    """A moment for people; nothing for what no clock ever said."""
    try:
        return f" ({datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC)"
    except (ValueError, OverflowError, OSError):
        return ""


def lives(pid: int) -> bool:
    """Whether there is such a process, of any user, that has not ended."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return _status(pid)[:1] not in (["Z"], ["X"])


def born(pid: int) -> int:
    """When a process began, in the kernel's ticks since the machine's start; 0 where that is not told.

    In a container every service is process 1, and on any machine numbers return; the two together do not.
    """
    status = _status(pid)
    return int(status[19]) if len(status) > 19 else 0


def _status(pid: int) -> list[str]:
    """The kernel's line on a process after its name, which may have anything in it."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    return raw.rpartition(b")")[2].decode("ascii", "replace").split()
