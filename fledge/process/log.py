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

from broker.net.redact import HIDDEN, redacted
from fledge.process.log_file import TRACEBACKS, LogFile, to_json

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
    local = None if also is None else LogFile(also, redacted)
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
            _cleaned(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Steady(target))),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; only what an operator should see passes.
    stderr = logging.StreamHandler(target)
    stderr.setFormatter(_Redacting("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[stderr])
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


class _Redacting(logging.Formatter):
    """What libraries say, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _cleaned(render: Processor) -> Processor:
    """The last step before a line leaves: whatever its fields held, it is text then."""
    return lambda logger, method, event: redacted(str(render(logger, method, event)))


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace whatever a field of a telling name holds; what other fields quote goes with `redacted`."""
    for name in event:
        if _is_secret(name):
            event[name] = HIDDEN
    return event


@cache
def _is_secret(field: str) -> bool:
    return _SECRET_FIELD.search(field) is not None
