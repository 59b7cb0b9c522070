"""Answers as people and programs read them: tables, plain lines, or one JSON object. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    from fledge.operator.console import Answer
    from protocol.codec import Plain, Value

from fledge.process.terminal import clean, line

NO_ANSWER = "no_answer"
OK, FAILED, SILENT = 0, 1, 4
LINES = "lines"
_CURSOR = "next"
"""What a table of lines goes on from; for programs alone."""
_SHORT = 12
_SMALL = 100_000
"""Bytes that are shown one by one."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an answer holds: single values, the columns of its table, and lines of text."""

    scalars: Mapping[str, Plain]
    columns: Mapping[str, Sequence[Plain]]
    lines: tuple[str, ...]

    def rows(self) -> list[dict[str, Plain]]:
        """The table, row by row."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def parts(values: Mapping[str, Value]) -> Parts:
    """Take an answer apart; columns that are shorter than the longest are filled up with None."""
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    scalars = {name: value for name, value in values.items() if not isinstance(value, list | tuple) and name != _CURSOR}
    lines = tuple(str(line) for line in lists.pop(LINES, ()))
    length = max(map(len, lists.values()), default=0)
    columns = {name: [*column, *[None] * (length - len(column))] for name, column in lists.items()}
    return Parts(scalars, columns, lines)


def exit_code(answers: Iterable[Answer]) -> int:
    """0 if all said yes, 1 if any refused or failed, else 4: one has not answered yet."""
    reasons = [answer.reason for answer in answers if not answer.ok]
    if not reasons:
        return OK
    return SILENT if all(reason == NO_ANSWER for reason in reasons) else FAILED


def as_json(answers: Iterable[Answer]) -> str:
    """One line that holds everything, digests and control characters included."""
    said = [
        {"sender": each.sender, "ok": each.ok, "reason": each.reason, "text": each.text, "values": dict(each.values)}
        for each in answers
    ]
    return json.dumps({"answers": said}, default=_json_value)


def _json_value(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def shown(column: str, value: object) -> str:
    """One value as people read it; what a number means follows from its column's name."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        value = value.hex()
    if column in _COLUMNS:
        return _COLUMNS[column](value)
    return f"{value:.5g}" if isinstance(value, float) else clean(str(value))


def ago(seconds: object) -> str:
    """How long something is past, in the largest unit that fits."""
    if not isinstance(seconds, int | float):
        return clean(str(seconds))
    if seconds < 0:
        return "never"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _when(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return clean(str(seconds))
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _share(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else clean(str(value))


def _version(value: object) -> str:
    return "-" if value == -1 else clean(str(value))


def _size(value: object) -> str:
    if not isinstance(value, int | float):
        return clean(str(value))
    return f"{value:.0f}" if value < _SMALL else f"{value / 1e6:.4g} MB"


def _days(value: object) -> str:
    if not isinstance(value, int | float):
        return clean(str(value))
    return "-" if value < 0 else f"{value:.5g}"


def _short(value: object) -> str:
    return clean(str(value))[:_SHORT]


_COLUMNS: Mapping[str, Callable[[object], str]] = {
    "seen": ago,
    "at": _when,
    "arrived": _when,
    "settled": _when,
    "published": _when,
    "progress": _share,
    "digest": _short,
    "hash": _short,
    "certificate": _days,
    "version": _version,
    "size": _size,
    "bytes": _size,
}


def table(
    columns: Mapping[str, Sequence[object]], box: Box | None = None, heading: Callable[[str], str] = clean
) -> Table:
    """A table whose cells fold rather than vanish; numbers stand on the right."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box, pad_edge=box is not None, header_style="bold", show_header=True)
    for name, column in columns.items():
        numbers = bool(column) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in column)
        drawn.add_column(Text(heading(clean(name))), justify="right" if numbers else "left", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        drawn.add_row(*(Text(shown(name, value)) for name, value in zip(columns, row, strict=True)))
    return drawn


def pairs(scalars: Mapping[str, object]) -> Table:
    """Single values, one a line."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in scalars.items():
        drawn.add_row(Text(clean(name)), Text(shown(name, value)))
    return drawn


def narrowed(answer: Answer, width: int, dispensable: Sequence[str]) -> Answer:
    """The answer for a screen of `width` columns: of what is dispensable, the first go until the table fits."""
    values = dict(answer.values)
    for name in dispensable:
        if _width(parts(values).columns) <= width:
            break
        values.pop(name, None)
    return replace(answer, values=values)


def _width(columns: Mapping[str, Sequence[object]]) -> int:
    return sum(2 + max([len(name), *(len(shown(name, value)) for value in column)]) for name, column in columns.items())


def aside(answer: Answer) -> str:
    """What is said beside lines of text, and does not belong among them."""
    return clean(answer.text) if answer.ok and answer.values.get(LINES) else ""


def people(answer: Answer, *, headed: bool) -> list[Table | Text | str]:
    """What to print of one answer: tables and styled lines, and plain strings that nothing may break up.

    With `headed` the sender stands above, for there are several.
    """
    from rich.text import Text

    name = clean(answer.sender)
    if not answer.ok:
        style = "yellow" if answer.reason == NO_ANSWER else "red"
        return [Text(f"{name}: {clean(answer.text) or 'refused'} ({clean(answer.reason)})", style=style)]
    found = parts(answer.values)
    body: list[Table | Text | str] = [Text(clean(answer.text))] if answer.text and not found.lines else []
    if found.scalars:
        body.append(pairs(found.scalars))
    if found.columns:
        body.append(table(found.columns) if any(found.columns.values()) else Text("nothing", style="dim"))
    body += [line(each) for each in found.lines]
    if not headed:
        return body or [Text("done")]
    if len(body) == 1 and answer.text and isinstance(body[0], Text | str):
        return [Text(f"{name}: ", style="bold") + body[0]]
    return [Text(name, style="bold"), *(body or [Text("done")])]
