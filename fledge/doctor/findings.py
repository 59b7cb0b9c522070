"""What one check found, in words without secrets. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from broker.net.redact import redacted


class Verdict(StrEnum):
    """How a check went."""

    GOOD = "good"
    WARNING = "warning"
    """It works, but should be looked at."""
    BAD = "bad"
    SKIPPED = "skipped"
    """Not tried, for the reason given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a connection goes."""

    name: str
    """`broker` or `store`."""
    host: str
    port: int
    encrypted: bool
    purpose: str = ""

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    """A fixed word, such as `broker.tcp`."""
    verdict: Verdict
    code: str = "ok"
    """A fixed word for the cause: what may be sent to anyone."""
    cause: str = ""
    """What was found, in words; may name files and addresses of this machine."""
    advice: str = ""
    number: float | None = None
    """What was measured: days left, seconds of skew, bytes free."""
    server: Server | None = None
    """To whom it was on the way."""


def good(check: str, cause: str = "", *, number: float | None = None, server: Server | None = None) -> Finding:
    """A check that went well."""
    return Finding(check=check, verdict=Verdict.GOOD, cause=redacted(cause), number=number, server=server)


def bad(check: str, code: str, cause: str, advice: str, *, server: Server | None = None) -> Finding:
    """A check that failed."""
    return Finding(check=check, verdict=Verdict.BAD, code=code, cause=redacted(cause), advice=advice, server=server)


def warning(check: str, code: str, cause: str, advice: str, *, number: float | None = None) -> Finding:
    """A check that should be looked at."""
    return Finding(check=check, verdict=Verdict.WARNING, code=code, cause=redacted(cause), advice=advice, number=number)


def skipped(check: str, code: str, cause: str) -> Finding:
    """A check that was not made."""
    return Finding(check=check, verdict=Verdict.SKIPPED, code=code, cause=redacted(cause))
