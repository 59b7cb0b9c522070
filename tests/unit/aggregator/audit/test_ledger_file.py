"""The ledger as a signed file: whatever is changed, added, left out or cut off is found."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.audit.ledger_file import check, lines
from aggregator.journal.history import LedgerRow, ledger_hash
from protocol.codec import encode
from protocol.errors import Malformed, Tampered, Untrusted, WireError
from protocol.keys import Identity, Role
from tests.support.wire import AGGREGATOR, FEDERATION, REGISTRY

NOON = 1_790_000_000.123


def rows(*entries: dict[str, object]) -> list[LedgerRow]:
    made, previous = [], b""
    for number, said in enumerate(entries, 1):
        entry = encode(said)
        previous = ledger_hash(previous, "command", entry)
        made.append(LedgerRow(number=number, kind="command", entry=entry, hash=previous))
    return made


FOUR = rows(
    {"run": "chest"}, {"id": b"12", "at": NOON}, {"sites": ("a", "b"), "at": NOON + 1}, {"n": 1.5, "at": NOON + 2}
)


def written(chain: list[LedgerRow] = FOUR, by: Identity = AGGREGATOR) -> list[bytes]:
    return [line.encode() + b"\n" for line in lines(chain, by, FEDERATION, NOON + 3)]


def test_a_copy_of_the_ledger_holds_every_entry_with_its_time_and_who_signed_it() -> None:
    found = check(written(), REGISTRY, FEDERATION)
    assert (found.entries, found.timed, found.signed_by) == (4, 3, "aggregator")
    assert (found.first, found.last) == ("2026-09-21T14:13:20.123+00:00", "2026-09-21T14:13:22.123+00:00")
    told = [json.loads(line) for line in written()[:-1]]
    assert [line["at"] is None for line in told] == [True, False, False, False]
    assert told[1]["entry"] == {"id": "3132"}
    assert check(written([]), REGISTRY, FEDERATION).entries == 0


@pytest.mark.parametrize("name", ["number", "at", "kind", "entry", "hash", "bytes"])
def test_a_changed_word_is_found_with_its_line(name: str) -> None:
    for at in range(4):
        changed = written()
        table = json.loads(changed[at])
        other = {"bytes": base64.b64encode(encode({"at": NOON + 9})).decode(), "number": 17, "entry": {}}
        table[name] = other.get(name, "2026-09-21T14:13:20.124+00:00")
        changed[at] = json.dumps(table).encode()
        with pytest.raises(Tampered, match=f"line {at + 1}: "):
            check(changed, REGISTRY, FEDERATION)


FORGED = [
    ('"entry": ', '"entry": {"run": "another"}, "entry": '),
    ('"kind": ', '"k\\u0069nd": "version", "kind": '),
    ('"number": 1', '"number": true'),
    ('"number": 1', '"number": 1.0'),
    ('"number": 1', '"number": 1, "signed": "by the hub"'),
]


@pytest.mark.parametrize(("honest", "forged"), FORGED)
def test_nothing_stands_on_a_line_that_was_not_compared(honest: str, forged: str) -> None:
    first, *rest = written()
    assert honest.encode() in first
    with pytest.raises(Tampered, match="line 1: "):
        check([first.replace(honest.encode(), forged.encode(), 1), *rest], REGISTRY, FEDERATION)


LOST: list[Callable[[list[bytes]], list[bytes]]] = [
    lambda all: all[1:],
    lambda all: all[:2] + all[3:],
    lambda all: [all[1], all[0], *all[2:]],
    lambda all: all[:-1],
    lambda all: [*all[:-2], all[-1]],
    lambda all: [*all, all[-1]],
    lambda all: [*all[:-1], *written(rows({"run": "other"}))[-1:]],
]


@pytest.mark.parametrize("change", LOST)
def test_what_was_left_out_added_or_put_elsewhere_is_found(change: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(Tampered):
        check(change(written()), REGISTRY, FEDERATION)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_of_a_copy_is_believed(data: Any) -> None:
    honest = written()
    at = data.draw(st.integers(0, len(honest) - 1))
    line = bytearray(honest[at][:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= data.draw(st.integers(1, 255))
    honest[at] = bytes(line)
    try:
        found = check(honest, REGISTRY, FEDERATION)
    except WireError:
        return
    assert found == check(written(), REGISTRY, FEDERATION)  # a blank, or another spelling of the same base64


def test_only_an_aggregator_of_this_federation_signs_a_ledger() -> None:
    forger = Identity.generate("aggregator", Role.AGGREGATOR)
    with pytest.raises(Untrusted):
        check(written(by=forger), REGISTRY, FEDERATION)
    with pytest.raises(Malformed, match=r"line 1 .*fledge audit export"):
        check([b"{"], REGISTRY, FEDERATION)
