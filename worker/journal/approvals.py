"""What a person at the hospital said to a run: notes in a directory, from the command line to the running worker.

A note is one small file that appears whole. The worker looks with every sign of life, takes a note aside, and removes
it once the answer is in its journal; whichever of the two is killed, the answer is found again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from broker.runtime.folders import private_folder
from protocol.codec import is_word
from protocol.errors import StateError

_WORDS = {"approved": True, "refused": False}
_MOST = 256
_SAID, _TAKEN, _NEW = ".said", ".taken", ".new"


class Approvals:
    """The directory of notes; one worker takes what any number of people say."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def say(self, run: str, approved: bool) -> None:
        """Leave a note; it replaces an earlier one about the same run.

        Raises:
            StateError: the directory cannot be written to.
        """
        word = next(word for word, meaning in _WORDS.items() if meaning == approved)
        new = self._path(run, _NEW)
        try:
            private_folder(self._directory)
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(file, "w", encoding="ascii") as opened:
                opened.write(word)
                opened.flush()
                os.fsync(file)
            os.replace(new, self._path(run, _SAID))
        except OSError as error:
            raise StateError(
                f"{self._directory}: the answer cannot be left there: {error.strerror}; "
                "say it as the user that the worker runs as"
            ) from error

    def take(self) -> dict[str, bool]:
        """Every answer that is not in the journal yet, by run."""
        found: dict[str, bool] = {}
        for run in self._runs():
            # What was taken before and is not noted yet comes first: a newer note waits, so that it cannot be removed
            # together with the older one.
            if self._read(run, _TAKEN) is None:
                with suppress(OSError):  # another user's file, or gone already
                    os.replace(self._path(run, _SAID), self._path(run, _TAKEN))
            approved = self._read(run, _TAKEN)
            if approved is not None:
                found[run] = approved
        return found

    def peek(self) -> dict[str, bool]:
        """The same, without taking anything: for people who ask what was said so far; the last word counts."""
        found: dict[str, bool] = {}
        for run in self._runs():
            for kind in (_TAKEN, _SAID):
                approved = self._read(run, kind)
                if approved is not None:
                    found[run] = approved
        return found

    def noted(self, run: str) -> None:
        """The answer is in the journal: forget the note that was taken."""
        with suppress(OSError):  # noted twice is no harm
            self._path(run, _TAKEN).unlink()

    def _path(self, run: str, kind: str) -> Path:
        return self._directory / f"{run}{kind}"

    def _runs(self) -> set[str]:
        try:
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in islice(entries, _MOST)]
        except OSError:
            return set()  # nothing has been said yet
        # Not by the path's suffix: what that is of `..said`, about a run called `.`, changed with Python 3.14.
        runs = {name.removesuffix(kind) for name in names for kind in (_SAID, _TAKEN) if name.endswith(kind)}
        return {run for run in runs if is_word(run)}

    def _read(self, run: str, kind: str) -> bool | None:
        """What a note says; None if there is none, or if it says nothing."""
        try:
            with self._path(run, kind).open(encoding="ascii", errors="replace") as file:
                return _WORDS.get(file.read(16).strip())
        except OSError:
            return None
