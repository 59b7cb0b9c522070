"""The ledger as a file: one JSON object a line, the aggregator's signature last; who has a kit can check it offline.

A line holds the entry's bytes, which the chain of hashes covers, and beside them number, time, kind and content for
people and programs; `check` compares the two. The last line is a signed checkpoint: how far the ledger went.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import nacl.utils

from aggregator.journal.history import LedgerRow, ledger_hash, read_entry
from protocol import limits, unique_json
from protocol.envelope import body, seal, verify
from protocol.errors import Malformed, Tampered, WireError
from protocol.keys import Identity
from protocol.messages import Checkpoint, Kind
from protocol.registry import Registry

LINE = 4 * limits.STORED_RECORD
"""Bytes of a line, at most."""
_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLedger:
    """What a copy of the ledger was found to hold."""

    entries: int
    timed: int
    """Entries with a time."""
    first: str
    """The earliest time that an entry holds, or `-`."""
    last: str
    signed_by: str
    issued: str


def lines(rows: Iterable[LedgerRow], identity: Identity, federation: str, now: float) -> Iterator[str]:
    """The lines of a ledger's file."""
    last: LedgerRow | None = None
    for row in rows:
        last = row
        words = {"number": row.number, **_words(row.kind, row.entry)}
        yield json.dumps(words | {"bytes": base64.b64encode(row.entry).decode(), "hash": row.hash.hex()})
    said = Checkpoint(
        number=0 if last is None else last.number,
        hash=None if last is None else last.hash,
        issued=round(now * 1000),
    )
    record = seal(identity, Kind.CHECKPOINT, said, (), federation=federation, message_id=nacl.utils.random(16))
    yield json.dumps({"checkpoint": base64.b64encode(record).decode()})


def check(raw: Iterable[bytes], registry: Registry, federation: str) -> CheckedLedger:
    """What a ledger's file holds, once chain, words and signature were found to belong together.

    Raises:
        Malformed: a line is none of such a file.
        Tampered: a line was changed, added or left out; names it.
        WireError: the checkpoint was not signed by an aggregator of this federation.
    """
    previous, number, timed, first, last = b"", 0, 0, "", ""
    signed: bytes | None = None
    for at, line in enumerate(raw, 1):
        if signed is not None:
            raise Tampered(f"line {at}: something follows the signed checkpoint")
        table = _parsed(at, line)
        if table.keys() == {"checkpoint"}:
            signed = _bytes(at, table, "checkpoint")
            continue
        number += 1
        previous = _checked(at, number, table, previous)
        if (when := table["at"]) is not None:
            timed, first, last = timed + 1, min(first or str(when), str(when)), max(last, str(when))
    if signed is None:
        raise Tampered("the signed checkpoint is missing: the end of the file was cut off")
    verified = verify(signed, registry, federation=federation, kinds={Kind.CHECKPOINT})
    said = body(verified, Checkpoint)
    if (said.number, said.hash or b"") != (number, previous):
        raise Tampered(f"{said.number} entries were signed, but others (or {number}) are in the file")
    return CheckedLedger(
        entries=number,
        timed=timed,
        first=first or "-",
        last=last or "-",
        signed_by=verified.sender.name,
        issued=_when(said.issued / 1000) or "-",
    )


def _checked(at: int, number: int, table: dict[str, object], previous: bytes) -> bytes:
    """The entry's hash, if everything on its line follows from its bytes and from the entry before."""
    entry, kind = _bytes(at, table, "bytes"), str(table.get("kind"))
    found = ledger_hash(previous, kind, entry)
    if found.hex() != table.get("hash"):
        raise Tampered(f"line {at}: entry {number} does not follow from the one before; it or its kind was changed")
    try:
        expected = {"number": number, **_words(kind, entry)}
    except WireError as error:
        raise Tampered(f"line {at}: the entry's bytes cannot be read ({error})") from error
    for name, value in expected.items():
        if not _is_same(table.get(name), json.loads(json.dumps(value))):
            raise Tampered(f"line {at}: {name} is not what entry {number} says; it was changed")
    if extra := sorted(table.keys() - expected.keys() - {"bytes", "hash"}):
        raise Tampered(f"line {at}: {extra[0][:_SHOWN]!r} was added")
    return found


def _is_same(told: object, signed: object) -> bool:
    """Also of one type: in Python true is 1, and to people it is not."""
    return told == signed and json.dumps(told, sort_keys=True) == json.dumps(signed, sort_keys=True)


def _words(kind: str, entry: bytes) -> dict[str, object]:
    at, said = read_entry(entry)
    return {"at": _when(at), "kind": kind, "entry": json.loads(json.dumps(said, default=_plain))}


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _when(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s after 1970"


def _parsed(at: int, line: bytes) -> dict[str, object]:
    try:
        table = unique_json.loads(line)
    except unique_json.SaidTwice as error:
        raise Tampered(f"line {at}: {error.name[:_SHOWN]!r} was added, so that it stands there twice") from None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise Malformed(f"line {at} is no line of a ledger's file; `fledge audit export` writes them")
    return table


def _bytes(at: int, table: dict[str, object], name: str) -> bytes:
    try:
        return base64.b64decode(str(table.get(name)), validate=True)
    except ValueError:
        raise Malformed(f"line {at}: {name} is not base64") from None
