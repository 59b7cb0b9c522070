"""Memory, processors, disk and accelerators of the site's machine: figures, and the names of products."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

Row = tuple[str, str]
_TIMEOUT_S = 3.0
_QUERY = ("--query-gpu=name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits")
_DEVICE = re.compile(r"([A-Za-z0-9][A-Za-z0-9 ()._+-]{0,63}), ([0-9]{1,8}), ([0-9]{1,8}), ([0-9]{1,3})", re.ASCII)
_DEVICES = 64


def machine(state: Path, environment: Mapping[str, str]) -> Iterator[Row]:
    """Metric by metric with its value; `state` says which disk is meant."""
    memory = psutil.virtual_memory()
    yield "memory_total", _size(memory.total)
    yield "memory_available", _size(memory.available)
    yield "memory_percent", f"{memory.percent:.1f}"
    yield "memory_used", _size(memory.used)
    yield "memory_free", _size(memory.free)
    yield "cpu_count", str(psutil.cpu_count() or 0)
    yield "cpu_load", " ".join(f"{load:.2f}" for load in psutil.getloadavg())
    yield from _disk("disk", state)
    yield from _disk("shm", Path("/dev/shm"))
    yield from accelerators(environment)


def accelerators(environment: Mapping[str, str], timeout: float = _TIMEOUT_S) -> list[Row]:
    """How many accelerators NVIDIA's driver names, and which; a driver that does not answer is waited for that long."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath))
    if program is None:
        return [("gpu_count", "0")]
    said = _said(program, environment, timeout)
    if said is None:
        return [("gpu_count", "unknown: nvidia-smi does not answer")]
    devices = [match.groups() for line in said.splitlines()[:_DEVICES] if (match := _DEVICE.fullmatch(line.strip()))]
    rows = [("gpu_count", str(len(devices)))]
    for number, (name, total, used, busy) in enumerate(devices):
        rows.append((f"gpu_device_{number}", f"{name}, {used} of {total} MiB used, {busy} % busy"))
    return rows


def _said(program: str, environment: Mapping[str, str], timeout: float) -> str | None:
    """What the program prints; None if it fails or takes too long.

    A broken driver can hold a process so that not even a kill ends it: it is not waited for.
    """
    surroundings = {"PATH": environment.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            [program, *_QUERY],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=surroundings,
            start_new_session=True,
        )
    except OSError:
        return None
    with suppress(subprocess.TimeoutExpired):
        output, _ = process.communicate(timeout=timeout)
        return output[: 64 * 1024].decode("ascii", "replace") if process.returncode == 0 else None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    return None


def _disk(name: str, folder: Path) -> Iterator[Row]:
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        yield f"{name}_total", _size(usage.total)
        yield f"{name}_free", _size(usage.free)
        yield f"{name}_percent", f"{100 * usage.used / max(1, usage.total):.1f}"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
