"""How far this process's resident memory rises while something runs, as the kernel counts it."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the kernel does not say {field}")
    return int(found[1]) * 1024


def peak_growth(action: Callable[[], object]) -> int:
    """Bytes between the resident memory before `action` and its peak during it (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    before = _status("VmRSS")
    action()
    return _status("VmHWM") - before
