"""What happened when in a federation, read from the logs that its processes write anyway."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Key = Callable[["Entry"], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One log line."""

    at: float
    """Seconds since the epoch."""
    event: str
    fields: Mapping[str, Any]


@dataclass(slots=True)
class Stages:
    """Seconds each stage took, once for every time it happened."""

    load: list[float] = field(default_factory=list)
    """Fetch and decrypt the base into the trainer's arrays."""
    train: list[float] = field(default_factory=list)
    form: list[float] = field(default_factory=list)
    """Form the delta, filter, encrypt and spool it durably."""
    upload: list[float] = field(default_factory=list)
    notice: list[float] = field(default_factory=list)
    """From the last chunk's upload to the start of admission: publish, journal, queue."""
    admission: list[float] = field(default_factory=list)
    merge: list[float] = field(default_factory=list)
    """From the plan to the commit."""
    announce: list[float] = field(default_factory=list)
    """From a version's commit to its arrival at each worker."""

    def medians(self) -> dict[str, float]:
        """The median of every stage that happened."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: statistics.median(values) for name, values in found.items() if values}


def tell(event: str, **fields: Any) -> None:
    """Write an entry to standard error, as the product's logs have them, whatever level they are cut at."""
    at = datetime.now(UTC).isoformat()
    sys.stderr.write(json.dumps({**fields, "event": event, "level": "info", "timestamp": at}) + "\n")


def read(paths: Iterable[Path]) -> list[Entry]:
    """All entries of these logs, in the order of their times; lines that are not JSON objects are skipped."""
    return sorted((entry for path in paths for entry in _lines(path)), key=lambda entry: entry.at)


def _lines(path: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("{"):
            continue
        try:
            fields = json.loads(line)
        except ValueError:  # the last line of a process that is still writing
            continue
        if "timestamp" in fields and "event" in fields:
            yield Entry(datetime.fromisoformat(fields["timestamp"]).timestamp(), fields["event"], fields)


def stages(entries: Sequence[Entry]) -> Stages:
    """How long each stage took, from the entries of all processes."""
    found = Stages()
    steps = [entry for entry in entries if entry.event == "step.done"]
    found.load = [entry.fields["load"] for entry in steps]
    found.train = [entry.fields["train"] for entry in steps]
    found.form = _from_last(entries, "step.done", "training.done", _site)
    found.upload = _between(entries, "upload.started", "upload.done", _update)
    found.notice = _between(entries, "upload.done", "admission.started", _update)
    found.admission = _between(entries, "admission.started", "update.validated", _update)
    found.merge = _between(entries, "merge.started", "version.committed", _version)
    committed = {_version(entry): entry.at for entry in entries if entry.event == "version.committed"}
    arrived = [entry for entry in entries if entry.event == "version.received" and _version(entry) in committed]
    found.announce = [max(0.0, entry.at - committed[_version(entry)]) for entry in arrived]
    return found


def commits(entries: Sequence[Entry]) -> dict[int, float]:
    """When each version was committed."""
    return {entry.fields["version"]: entry.at for entry in entries if entry.event == "version.committed"}


def first_steps(entries: Sequence[Entry]) -> dict[str, float]:
    """When each site took its first local step."""
    first: dict[str, float] = {}
    for entry in entries:
        if entry.event == "step.began":
            first.setdefault(entry.fields["site"], entry.at)
    return first


def problems(entries: Sequence[Entry]) -> list[str]:
    """Events at the levels warning and error, each kind once with its number."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.fields.get("level") in ("warning", "error", "critical"):
            counts[entry.event] = counts.get(entry.event, 0) + 1
    return [f"{event} x {count}" for event, count in sorted(counts.items())]


def _site(entry: Entry) -> Any:
    return entry.fields["site"]


def _update(entry: Entry) -> Any:
    return entry.fields["update"]


def _version(entry: Entry) -> Any:
    return entry.fields["version"]


def _between(entries: Sequence[Entry], start: str, end: str, key: Key) -> list[float]:
    """Seconds from each thing's first `start` to its first `end` after that."""
    began: dict[Any, float] = {}
    ended: dict[Any, float] = {}
    for entry in entries:
        if entry.event == start:
            began.setdefault(key(entry), entry.at)
        elif entry.event == end and key(entry) in began:
            ended.setdefault(key(entry), entry.at)
    return [at - began[thing] for thing, at in ended.items()]


def _from_last(entries: Sequence[Entry], start: str, end: str, key: Key) -> list[float]:
    """Seconds from the latest `start` of the same `key` to each `end`."""
    latest: dict[Any, float] = {}
    result = []
    for entry in entries:
        if entry.event == start:
            latest[key(entry)] = entry.at
        elif entry.event == end and key(entry) in latest:
            result.append(entry.at - latest.pop(key(entry)))
    return result
