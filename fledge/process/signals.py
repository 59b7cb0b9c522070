"""SIGTERM and SIGINT end a service in order, whatever its main thread is doing."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TAKEN = (signal.SIGTERM, signal.SIGINT)
_masks = threading.local()
"""Of the thread that forks: what it blocked before."""


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `stop` once, on a thread of its own; a second signal kills.

    On the main thread only. A handler in Python would run there too, and a main thread that waits for a lock does not
    always wake up for it: so the interpreter writes each signal's number into a socket, and another thread reads it.
    """
    heard, written = socket.socketpair()
    written.setblocking(False)
    earlier = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    before = {each: signal.signal(each, _nothing) for each in _TAKEN}
    threading.Thread(target=_listen, args=(heard, stop), name="signals", daemon=True).start()
    try:
        yield
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)
        signal.set_wakeup_fd(earlier)
        written.close()


def _listen(heard: socket.socket, stop: Callable[[], None]) -> None:
    stopping = False
    with heard:
        while number := heard.recv(1):
            if number[0] not in _TAKEN:
                continue
            if stopping:
                os._exit(128 + number[0])
            stopping = True
            threading.Thread(target=stop, name="stop", daemon=True).start()


def _nothing(_number: int, _frame: object) -> None:
    """Stands where a handler has to be, so that the interpreter sees the signal at all."""


def _before_a_fork() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)


def _after_a_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _in_a_child() -> None:
    """A forked process, such as one that loads data, must not stop the service by a signal that it alone was sent."""
    if signal.getsignal(signal.SIGTERM) is _nothing:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_a_fork()


os.register_at_fork(before=_before_a_fork, after_in_parent=_after_a_fork, after_in_child=_in_a_child)
