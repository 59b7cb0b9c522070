"""Tracebacks without secrets, also where Python itself prints them."""

from __future__ import annotations

import sys
import threading
import traceback
from contextlib import suppress


def traceback_of(error: BaseException) -> str:
    """A traceback for people: neither values of variables nor secrets in what the errors say."""
    from broker.net.redact import redacted  # `fledge --help` loads nothing of ours

    return redacted("".join(traceback.format_exception(error)))


def guard_tracebacks() -> None:
    """Take secrets out of the tracebacks that Python prints: of the main thread, of other threads, of finalizers."""
    sys.excepthook = lambda _kind, error, _traceback: show("", error)
    threading.excepthook = lambda failed: show(f"in thread {getattr(failed.thread, 'name', '?')}: ", failed.exc_value)
    sys.unraisablehook = lambda failed: show("ignored: ", failed.exc_value)


def show(before: str, error: BaseException | None) -> None:
    """Print a traceback to standard error; nothing if the program was told to end."""
    if error is not None and not isinstance(error, SystemExit):
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(before + traceback_of(error))
