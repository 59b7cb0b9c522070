"""A service ends in order at the first signal, whatever its main thread waits for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

PROGRAM = """\
import os, signal, sys, threading
from fledge.process.signals import stopped_by_signals

sys.setswitchinterval(3600)  # others run only while the main thread waits
stopped, idle, go = threading.Event(), threading.Event(), threading.Event()
other = threading.Thread(target=idle.wait, daemon=True)
other.start()

def stop():
    print("stopping", flush=True)
    if sys.argv[1] != "hangs":
        stopped.set()

def deliver():
    # To another thread: the one that waits for a lock is not woken, as when a signal comes just before it waits.
    go.wait()
    signal.pthread_kill(other.ident, getattr(signal, sys.argv[2]))

with stopped_by_signals(stop):
    if sys.argv[1] == "forks":
        child = os.fork()
        if child == 0:
            signal.pause()
        os.kill(child, signal.SIGTERM)
        print("child ended by", os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
    print("ready", flush=True)
    threading.Thread(target=deliver, daemon=True).start()
    go.set()
    stopped.wait()
print("stopped", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


def run(how: str, name: str = "SIGTERM") -> subprocess.CompletedProcess[str]:
    """A process that signals itself once it is ready, and ends."""
    command = [sys.executable, "-c", PROGRAM, how, name]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_heard_while_the_main_thread_waits_for_a_lock(name: str) -> None:
    done = run("ends", name)
    assert done.stdout.split() == ["ready", "stopping", "stopped", "True"]
    assert done.returncode == 0


def test_a_second_signal_kills() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "hangs", "SIGTERM"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "stopping\n"]
        watched = os.pidfd_open(process.pid)
        assert not select.select([watched], [], [], 0)[0]
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        os.close(watched)


def test_a_signal_to_a_forked_process_is_its_own() -> None:
    done = run("forks")
    assert done.stdout.splitlines() == [f"child ended by {signal.SIGTERM.value}", "ready", "stopping", "stopped True"]
