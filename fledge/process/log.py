"""Logs: to standard error, for people on a terminal and as one JSON object a line otherwise. Secrets never.

A service keeps a second copy in a file of its own (`log_file.py`), from which operators may be told a part.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fledge.process.log_file import TRACEBACKS, LogFile, to_json

_CREDENTIALS = re.compile(r"(://)[^\s/@]+@")
_SECRET_FIELD = re.compile(r"password|secret|credential|token|private", re.IGNORECASE)


def configure(
    *,
    verbose: bool = False,
    quiet: bool = False,
    json_lines: bool | None = None,
    file: TextIO | None = None,
    also: Path | None = None,
) -> None:
    """Set up structlog for this process; to `file` (default: standard error), in JSON unless that is a terminal.

    Args:
        verbose: log details too.
        quiet: log only what is wrong, unless `verbose` is set.
        json_lines: whether to write JSON, whatever `file` is.
        file: where to write.
        also: a local file that gets a copy of everything, always in JSON, with whatever libraries complain of.

    Raises:
        StateError: the local file cannot be written.
    """
    _close_local()
    local = None if also is None else LogFile(also, without_credentials)
    target = file or sys.stderr
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    as_json = not target.isatty() if json_lines is None else json_lines
    renderer: Processor = (
        structlog.processors.JSONRenderer(serializer=to_json)
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
            *([TRACEBACKS] if as_json else []),
            hide_secrets,
            *([_copying(local)] if local else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Steady(target))),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; only what an operator should see passes.
    logging.basicConfig(level=logging.WARNING, stream=target, format="%(name)s: %(message)s")
    if local is not None:
        local.setLevel(logging.WARNING)
        logging.getLogger().addHandler(local)


def _close_local() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, LogFile)]:
        root.removeHandler(handler)
        handler.close()


def _copying(file: LogFile) -> Processor:
    def copy(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        entry = TRACEBACKS(logger, method, dict(event))
        file.keep({**entry, "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")})
        return event

    return copy


class Steady:
    """A stream for logs that drops what cannot be written: a full disk or a closed pipe must not stop a service."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Append `text`, or drop it."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace credentials in URLs, and whatever a field of a telling name holds."""
    for name, value in event.items():
        if _is_secret(name):
            event[name] = "***"
        elif isinstance(value, str) and "://" in value:
            event[name] = without_credentials(value)
    return event


@cache
def _is_secret(field: str) -> bool:
    return _SECRET_FIELD.search(field) is not None


def without_credentials(text: str) -> str:
    """The text with user and password of every URL in it replaced by stars."""
    return _CREDENTIALS.sub(r"\1***@", text)
