"""ls, cat, head, tail and grep: each a function from an operator's arguments to lines; no shell, no other program."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

from protocol import limits
from worker.inspection.arguments import Arguments
from worker.inspection.scrub import BYTES, fitting
from worker.inspection.view import FileEntry, FileView

_DEPTH = 8
_MOST_LINES = limits.PLAINS
_UNREAD = 100_000
"""Lines of a file that are looked at."""


def ls(view: FileView, arguments: Arguments) -> tuple[str, ...]:
    """A listing by the options of the command of that name."""
    asked, options = arguments.text("path", "."), arguments.options("altSRu")
    arguments.done()
    entry = view.find(asked)
    if not entry.folder:
        return (_row(entry, options),)
    return fitting(list(islice(_listing(view, entry, options, asked or ".", _DEPTH), _MOST_LINES)))


def cat(view: FileView, arguments: Arguments) -> tuple[str, ...]:
    """A file's lines, the first that fit."""
    asked, options = arguments.text("path"), arguments.options("nbsT")
    arguments.done()
    lines = _lines(view, asked)
    if "s" in options:
        lines = _squeezed(lines)
    if "T" in options:
        lines = (line.replace("\t", "^I") for line in lines)
    if options & {"n", "b"}:
        lines = _numbered(lines, blank="b" not in options)
    return fitting(list(islice(lines, _MOST_LINES)))


def head(view: FileView, arguments: Arguments) -> tuple[str, ...]:
    """A file's first lines, or with `bytes` its beginning."""
    asked, count, size = _ends(arguments)
    lines = _lines(view, asked)
    if size is None:
        return fitting(list(islice(lines, count)))
    return fitting(_first(lines, size))


def tail(view: FileView, arguments: Arguments) -> tuple[str, ...]:
    """A file's last lines, or with `bytes` its end."""
    asked, count, size = _ends(arguments)
    lines = deque(_lines(view, asked), count if size is None else _MOST_LINES)
    if size is None:
        return fitting(list(lines), newest=True)
    turned = _first((line[::-1] for line in reversed(lines)), size)
    return fitting([line[::-1] for line in reversed(turned)], newest=True)


def grep(view: FileView, arguments: Arguments) -> tuple[str, ...]:
    """Lines that have a text in them: the text itself, never a pattern, so that no search can run for ever.

    Only what would be shown is searched: otherwise asking for a name would tell whether it is there.
    """
    wanted, asked = arguments.text("pattern"), arguments.text("path")
    options = arguments.options("nib")
    arguments.done()
    return fitting(list(islice(_matches(_lines(view, asked), wanted, options), _MOST_LINES)))


def _ends(arguments: Arguments) -> tuple[str, int, int | None]:
    asked, count = arguments.text("path"), arguments.number("lines", 10, 1, _MOST_LINES)
    size = arguments.number("bytes", 1, 1, BYTES) if arguments.given("bytes") else None
    arguments.done()
    return asked, count, size


def _lines(view: FileView, asked: str) -> Iterator[str]:
    return islice(view.lines(view.find(asked)), _UNREAD)


def _first(lines: Iterator[str], size: int) -> list[str]:
    """Lines until their characters and line ends are `size`."""
    kept = []
    for line in lines:
        kept.append(line[:size])
        size -= len(line) + 1
        if size <= 0:
            break
    return kept


def _matches(lines: Iterator[str], wanted: str, options: frozenset[str]) -> Iterator[str]:
    fold = str.casefold if "i" in options else str
    wanted = fold(wanted)
    offset = 0
    for number, line in enumerate(lines, 1):
        if wanted in fold(line):
            places = [str(number)] * ("n" in options) + [str(offset)] * ("b" in options)
            yield ":".join((*places, line))
        offset += len(line.encode("utf-8", "replace")) + 1


def _squeezed(lines: Iterator[str]) -> Iterator[str]:
    before = "-"
    for line in lines:
        if line or before:
            yield line
        before = line


def _numbered(lines: Iterator[str], *, blank: bool) -> Iterator[str]:
    number = 0
    for line in lines:
        if line or blank:
            number += 1
            yield f"{number:6}\t{line}"
        else:
            yield line


def _listing(view: FileView, folder: FileEntry, options: frozenset[str], name: str, depth: int) -> Iterator[str]:
    entries = _sorted(view.inside(folder), options)
    if "R" in options:
        yield f"{name}:"
    if "a" in options:
        yield from (".", "..")
    yield from (_row(entry, options) for entry in entries)
    if "R" in options and depth:
        for entry in entries:
            if entry.folder:
                yield ""
                yield from _listing(view, entry, options, f"{name}/{entry.name}", depth - 1)


def _sorted(entries: list[FileEntry], options: frozenset[str]) -> list[FileEntry]:
    """By name; -S largest first; -t newest first, with -u by the last access; -u alone is -u -t, unless -l shows it."""
    if "S" in options:
        return sorted(entries, key=lambda entry: -entry.found.size)
    if "t" in options or ("u" in options and "l" not in options):
        return sorted(entries, key=lambda entry: -_time(entry, options))
    return entries


def _time(entry: FileEntry, options: frozenset[str]) -> float:
    return entry.found.accessed if "u" in options else entry.found.modified


def _row(entry: FileEntry, options: frozenset[str]) -> str:
    if "l" not in options:
        return entry.name
    kind = "d" if entry.found.folder else "-" if entry.found.regular else "?"
    when = datetime.fromtimestamp(_time(entry, options), UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{kind} {entry.found.size:12} {when} {entry.name}"
