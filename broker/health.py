"""Signs of health that a service leaves for whoever looks after it: when the other side last accepted it."""

from __future__ import annotations

import os
from pathlib import Path

from broker.notes import read_note, write_note

HEALTH = "health.json"


def write_health(path: Path, accepted: float | None, started: float) -> None:
    """Note when this process was last accepted (by the hub, or for a hub by its broker), in seconds since the epoch.

    None says "not yet": written first thing at a start, it takes away what the process before has left.

    Raises:
        StateError: the file cannot be written.
    """
    pid = os.getpid()
    write_note(path, {"accepted": accepted, "pid": pid, "started": started, "born": born(pid)})


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
    if not lives(pid) or (isinstance(birth, int) and born(pid) not in (birth, 0)):
        return "the process has ended; start it, and see its log for why"
    if not isinstance(accepted, int | float) or accepted < started:
        return "the process runs, but has not been accepted since it started; see its log, or run `fledge doctor`"
    if abs(now - accepted) > longest:
        minutes = abs(now - accepted) / 60
        return f"the process runs, but was last accepted {minutes:.0f} minutes ago; see its log, or run `fledge doctor`"
    return ""


def lives(pid: int) -> bool:
    """Whether there is such a process, whoever owns it, that has not ended."""
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
