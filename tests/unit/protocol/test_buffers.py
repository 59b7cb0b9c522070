"""Buffers where memory is short."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHORT = """
import resource
from protocol.buffers import new_buffer

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 16 * 2**20,) * 2)
held = []
try:
    while True:
        held.append(new_buffer(2**20))
except MemoryError as error:
    print(len(held), error)
held.clear()
new_buffer(2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_where_there_is_no_memory_it_says_so_and_not_that_a_disk_failed() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=True)
    count, _, said = done.stdout.partition(" ")
    assert 1 <= int(count) <= 16
    assert said == "no memory for a buffer of 1048576 bytes: Cannot allocate memory\n"
