"""Removing what is private: everything that is told of a site passes here.

What has fields (log entries, records) passes by a list of what may be told (`vocabulary.py`). Free text cannot be
judged word by word: names have spaces, quotes and brackets in them. So a line is told up to where something private
begins and not beyond; what cannot even be cut like that is not told at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from protocol import limits
from worker.inspection.vocabulary import EVENTS, KINDS, LEVELS, NUMBERS, WORDS
from worker.policy import DATA_FILE

PATH, FILE, TAG, NUMBER = "<path>", "<file>", "<tag>", "<number>"
URL, MAIL, TEXT, EVENT = "<url>", "<mail>", "<text>", "<event>"
LONGEST = 1024
"""Characters of one line of an answer."""
_CUT = 4096
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z", re.ASCII)
# No pattern below can take longer than a line is long: none begins in the midst of what it has just failed on.
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]+://.*")
_MAIL = re.compile(r"(?<![^\s@])[^\s@/\\]+@[^\s@/\\]+")  # a slash stays, for it makes a path of what stands before
_DICOM = re.compile(
    # Group and element, and unique identifiers; then everything whose name says that it is about a person.
    r"\(?(?<![0-9a-f])[0-9a-f]{4}\s?[,:|_]\s?[0-9a-f]{4}(?![0-9a-f]).*"
    r"|(?<![0-9.])[0-9]+(?:\.[0-9]+){3,}.*"
    r"|(?:patient|study|series|accession|institution|physician|referring|operators?|station|sop|birth|mrn)"
    r"(?:['’]?s)?[\s_-]{0,4}(?:instance|birth|class|medical|record|other|)[\s_-]{0,4}"
    r"(?:name|id|uid|number|date|time|sex|age|address|comments?|description|of)(?![a-z]).*"
    r"|\bmrn\b.*",
    re.IGNORECASE,
)
_ABSOLUTE = re.compile(r"(?:^|(?<=[\s\"'`=(\[{,:;<>|]))(?:~[\w.-]{0,64}|\.{1,2}|[A-Za-z]:)?[/\\].*")
_RELATIVE = re.compile(r"[^\s<][/\\]|[/\\][^\s>]")
_DIGITS = re.compile(r"(?<!\w)(?<![0-9]\.)\w*[0-9](?:[ _-]?[0-9]){4,}\w*")


def free_text(line: str) -> str:
    """One line of text up to the first thing in it that is private, with a mark for what that was."""
    if len(line) > _CUT:
        return TEXT
    shown = _printable(line)
    if DATA_FILE.search(shown):  # where its name begins, cannot be told; before anything below takes its end away
        return FILE
    for private, mark in ((_URL, URL), (_MAIL, MAIL), (_DICOM, TAG)):
        shown = private.sub(mark, shown)
    shown = _ABSOLUTE.sub(PATH, shown)
    if _RELATIVE.search(shown):
        return PATH
    return shortened(_DIGITS.sub(NUMBER, shown))


def log_line(raw: str) -> str:
    """A line of the worker's log: when, how grave, which event, and those fields that say nothing private."""
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return TEXT
    return log_entry(entry)


def log_entry(entry: Mapping[str, object]) -> str:
    """An entry of the worker's log in one line; of an event that is not one of ours, only when it happened."""
    when, level, event = (entry.get(key) for key in ("timestamp", "level", "event"))
    words = [when if isinstance(when, str) and _TIME.fullmatch(when) else "-"]
    words.append(level if isinstance(level, str) and level in LEVELS else "-")
    if not isinstance(event, str) or event not in EVENTS:
        return " ".join((*words, EVENT))
    rest = {key: value for key, value in entry.items() if key not in ("timestamp", "level", "event", "line")}
    told = dict(fields(rest))
    words += [event, *(f"{key}={value}" for key, value in told.items())]
    if rest.keys() - told.keys():
        words.append("(more in the site's own log)")
    return shortened(" ".join(words))


def fields(entry: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Name and value, as text, of everything in `entry` that may be told."""
    for key, value in entry.items():
        if key in NUMBERS and isinstance(value, int | float):
            if abs(value) < 2**53 and math.isfinite(value):
                yield key, json.dumps(value)
        elif key in WORDS and isinstance(value, str) and WORDS[key].fullmatch(value) and not is_private(value):
            yield key, value
        elif key in ("kind", "reason", "exception") and (kind := _kind(value)):
            yield "kind" if key == "exception" else key, kind


def is_private(word: str) -> bool:
    """Whether a word of the right shape is a file's name or a tag all the same."""
    return any(private.search(word) for private in (_DICOM, DATA_FILE, _MAIL, _RELATIVE))


def shortened(line: str) -> str:
    """At most `LONGEST` characters."""
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _kind(value: object) -> str:
    """The kind of an error, or of the traceback structlog makes of one."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0].get("exc_type")
    return value if isinstance(value, str) and value in KINDS else ""


def _printable(line: str) -> str:
    """Without what would move a terminal's cursor, colour it, or turn its text around."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in line)


BYTES = 160 * 1024
"""What the lines of an answer may take; the rest of a message's body is for whatever is beside them."""
_BESIDE = 5
"""Bytes a line takes besides its text, at most."""


def fitting(lines: Sequence[str], *, newest: bool = False) -> tuple[str, ...]:
    """As many lines as an answer holds, each of at most 1024 characters: the first, or with `newest` the last."""
    kept: list[str] = []
    left = BYTES
    for line in map(shortened, reversed(lines) if newest else lines):
        left -= len(line.encode("utf-8", "replace")) + _BESIDE
        if left < 0 or len(kept) == limits.PLAINS:
            break
        kept.append(line)
    return tuple(reversed(kept) if newest else kept)
