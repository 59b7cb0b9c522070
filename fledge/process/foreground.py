"""Commands that play a whole federation in one process, on the screen: `fledge demo` and `fledge try`."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog
from rich.console import Console

from broker.runtime.folders import private_folder
from fledge.process import log
from protocol.errors import ConfigError


def open_screen(file: IO[str] | None = None, *, markup: bool = False) -> Console:
    """Where it is shown; without `markup`, what stands in brackets in the words of others is none of ours."""
    made = Console(file=file, highlight=False, markup=markup, emoji=False)
    if not made.is_terminal:
        made.width = 110  # a pipe has no width, and 80 breaks lines
    return made


@contextmanager
def interruptible() -> Iterator[None]:
    """Being told to stop, or a terminal that goes away, is like Ctrl-C: what there is is shown, and nothing left."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def place_for(out: Path | None, prefix: str) -> Iterator[Path]:
    """The new directory that `--out` names, or one that vanishes.

    Raises:
        ConfigError: it is in use, or cannot be made.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)
        return
    try:
        private_folder(out)
        used = any(out.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}; name a new directory") from error
    if used:
        raise ConfigError(f"--out {out} is not empty; name a new directory")
    yield out.absolute()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """What aggregator and workers say goes to a file: the screen is not theirs."""
    before = structlog.get_config()
    with path.open("w", encoding="utf-8") as file:
        log.configure(file=file)
        try:
            yield
        finally:
            structlog.configure(**before)
