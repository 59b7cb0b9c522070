"""What a check of a bundle and its data found: said the same way wherever it was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import FledgeError


class Severity(StrEnum):
    """Whether training is going to fail or go wrong by it, or it should merely be known."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be. It may name a patient's file, so it stays at the site."""

    where: str
    """A file, or a place in one."""
    what: str
    advice: str
    """What to do."""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}; {self.advice}"


def of_error(error: FledgeError, where: str) -> Problem:
    """An error of ours, which says what happened before the first semicolon and what to do after it."""
    what, _, advice = str(error).partition("; ")
    return Problem(where, what, advice or "correct it and check again")
