"""What somebody who holds bytes, or even a member's keys, cannot achieve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from protocol import limits
from protocol.blob import Manifest
from protocol.cipher import Suite
from protocol.envelope import Sealer, seal, unlock, verify
from protocol.errors import Tampered, TooLarge, Untrusted, WireError, WrongContext
from protocol.keys import Participant, Role
from protocol.messages import Kind
from protocol.registry import open_registry, sign_registry
from tests.support.chunks import small_records
from tests.support.hostile import ACCEPTED, flip, forwarded, hand_made
from tests.support.memory import peak_growth
from tests.support.wire import (
    AGGREGATOR,
    FEDERATION,
    REGISTRY,
    ROOT,
    RUN,
    SITE_A,
    SITE_B,
    SPEC,
    Made,
    changed,
    fixed,
    identity,
    make,
    parts,
    pattern,
    read,
    signed,
)

MIB = 2**20


def refused(made: Made, **options: Any) -> WireError | None:
    """Why it is refused; None if it is accepted. Anything but a `WireError` is raised."""
    try:
        read(made, **options)
    except WireError as error:
        return error
    return None


@pytest.fixture(scope="module", params=Suite)
def small(request: pytest.FixtureRequest) -> Made:
    """An update of a hundred bytes that is accepted."""
    made = make(Kind.UPDATE, data=pattern(100), suite=request.param)
    assert refused(made) is None
    return made


def test_no_single_bit_of_an_envelope_can_be_turned(small: Made) -> None:
    accepted = [bit for bit in range(8 * len(small.raw)) if refused(replace(small, raw=flip(small.raw, bit))) is None]
    assert accepted == []


@pytest.mark.parametrize("verify_chunks", [True, False], ids=["by-hash", "by-cipher-alone"])
def test_no_single_bit_of_a_chunk_can_be_turned(small: Made, verify_chunks: bool) -> None:
    (chunk,) = small.chunks
    for bit in range(8 * len(chunk)):
        error = refused(replace(small, chunks=(flip(chunk, bit),)), verify_chunks=verify_chunks)
        assert isinstance(error, Tampered)


@pytest.mark.parametrize("suite", Suite)
def test_no_record_can_be_moved_doubled_or_left_out_even_by_who_signs_the_chunks(suite: Suite) -> None:
    """Twenty records in three chunks; the attacker names and signs whatever chunks result."""
    with small_records():
        made, other = (make(Kind.UPDATE, data=pattern(639), suite=suite, sequence=n) for n in (17, 18))
        step = 32 + suite.overhead
        mine, theirs = (
            [sealed[at : at + step] for at in range(0, len(sealed), step)]
            for sealed in (b"".join(made.chunks), b"".join(other.chunks))
        )
        assert refused(cut_again(made, mine)) is None
        assert (len(mine), len(made.chunks)) == (20, 3)
        swaps = ((0, 1), (7, 8), (3, 12), (0, 18), (18, 19))
        for wrong in (
            *(swapped(mine, one, two) for one, two in swaps),
            *(mine[:at] + theirs[at : at + 1] + mine[at + 1 :] for at in (0, 7, 8, 19)),
            *(mine[:at] + mine[at + 1 :] for at in (0, 7, 8, 16, 18, 19)),
            *(mine[:at] + mine[at : at + 1] + mine[at:] for at in (0, 7, 19)),
            *(mine[:at] for at in (1, 8, 16, 19)),
            mine[::-1],
            [*mine[:15], *mine[16:], mine[15]],
            theirs,
        ):
            error = refused(cut_again(made, wrong))
            assert isinstance(error, Tampered)
            assert error.reason in ("tampered", "truncated")


def swapped(records: list[bytes], one: int, two: int) -> list[bytes]:
    """Two of them in each other's place."""
    again = list(records)
    again[one], again[two] = again[two], again[one]
    return again


def cut_again(made: Made, records: list[bytes]) -> Made:
    """The message with other records, eight to a chunk, which its sender names and signs."""
    chunks = tuple(b"".join(records[at : at + 8]) for at in range(0, len(records), 8))
    return replace(changed(made, chunks=[hashlib.sha256(chunk).digest() for chunk in chunks]), chunks=chunks)


def test_a_federation_reads_every_suite_whatever_its_registry_asks_for() -> None:
    """A hub that is still on the first suite takes what sites send in the second, and the other way round."""
    for suite in Suite:
        registry = replace(REGISTRY, cipher=suite.word)
        for written in Suite:
            assert refused(make(Kind.UPDATE, suite=written), trust=registry) is None


def test_a_registry_that_asks_for_an_unknown_suite_is_neither_signed_nor_taken() -> None:
    asked = replace(REGISTRY, cipher="aegis-1024")
    with pytest.raises(WrongContext):
        sign_registry(asked, ROOT, FEDERATION, fixed("id")[:16])
    raw = seal(ROOT, Kind.REGISTRY, asked, (), federation=FEDERATION, message_id=bytes(16), sequence=asked.version)
    with pytest.raises(WrongContext, match="aegis-1024") as error:
        open_registry(raw, ROOT.public.verify_key, FEDERATION)
    assert error.value.reason == "upgrade_needed"


def test_no_beginning_of_an_envelope_or_chunk_is_taken_for_the_whole(small: Made) -> None:
    for end in range(len(small.raw)):
        assert refused(replace(small, raw=small.raw[:end])) is not None
    for end in range(len(small.chunks[0])):
        assert refused(replace(small, chunks=(small.chunks[0][:end],))) is not None


def test_a_sender_who_turns_a_bit_and_signs_again_is_read_or_refused_and_nothing_else(small: Made) -> None:
    packed = small.raw[26:-64]
    reasons = set()
    for bit in range(0, 8 * len(packed), 3):
        again = replace(small, raw=signed(flip(packed, bit), signer=SITE_A, kind=Kind.UPDATE))
        error = refused(again)
        reasons.add(error.reason if error else "accepted")
    assert {"malformed", "tampered", "wrong_wrap", "wrong_context", "wrong_federation", "not_for_us"} <= reasons


def test_a_replayed_message_is_the_same_message(small: Made) -> None:
    """Nothing here remembers: the journal is unique by these, and no replay can have others."""
    first, second = (read(small).core for _ in range(2))
    assert (first.sender, first.epoch, first.sequence, first.id) == (
        second.sender,
        second.epoch,
        second.sequence,
        second.id,
    )
    for other in ({"sequence": 18}, {"epoch": 2}, {"id": bytes(16)}):
        error = refused(changed(small, core=other))
        assert error is not None
        assert error.reason == "wrong_wrap"


def test_a_recipient_cannot_pass_a_message_on_as_if_it_had_been_for_somebody_else() -> None:
    made, victim = forwarded()
    error = refused(made, reader=victim)
    assert isinstance(error, Untrusted)
    assert error.reason == "bad_signature"


def test_a_recipient_cannot_sign_for_the_sender_it_read() -> None:
    made, victim = forwarded()
    again = replace(made, raw=signed(made.raw[26:-64], signer=AGGREGATOR, kind=Kind.UPDATE))
    error = refused(again, reader=victim)
    assert isinstance(error, WrongContext)


def test_a_wrapped_key_opens_nothing_but_its_own_message(small: Made) -> None:
    stolen, _ = parts(small.raw)
    other = changed(make(Kind.EVALUATION, signer=SITE_B), wraps=stolen["wraps"])
    error = refused(other)
    assert isinstance(error, Tampered)
    assert error.reason == "wrong_wrap"


def test_a_stored_attack_made_by_hand_is_accepted_when_every_step_is_right() -> None:
    assert refused(hand_made()) is None


def test_other_encodings_of_the_same_header_are_fine_as_long_as_they_are_signed(small: Made) -> None:
    header, _ = parts(small.raw)
    backwards = dict(reversed(header.items()))
    assert list(backwards) != list(header)
    roomy = msgpack.packb(backwards).replace(b"\xa2to\x91", b"\xa2to\xdd\x00\x00\x00\x01")
    assert len(roomy) > len(msgpack.packb(header))
    assert refused(replace(small, raw=signed(roomy, signer=SITE_A, kind=Kind.UPDATE))) is None


# ---- sizes


def bodied(kind: Kind, body: bytes) -> Made:
    return make(kind, body=body)


def parameters(values: object) -> bytes:
    return msgpack.packb({"counter": 1, "expires": 1, "command": "x", "arguments": values})


def record(header: bytes) -> Made:
    """A stored record around any header, signed by the aggregator."""
    return Made(signed(header, signer=AGGREGATOR, kind=Kind.VERSION))


BOMBS: dict[str, Callable[[], Made]] = {
    "message of 1 MiB and a byte": lambda: Made(bytes(limits.STORED_RECORD + 1)),
    "array of a million": lambda: record(b"\x81\xa4core\xdd" + (10**6).to_bytes(4, "big") + b"\xc0" * 10**6),
    "array that says four billion": lambda: record(b"\x81\xa4core\xdd\xff\xff\xff\xff" + b"\xc0" * 10**6),
    "text that says four billion": lambda: record(b"\x81\xa4core\xdb\xff\xff\xff\xff" + b"a" * 10**6),
    "map of a quarter million": lambda: record(
        b"\xdf" + (10**5).to_bytes(4, "big") + b"".join(msgpack.packb(f"{i:07}") + b"\xc0" for i in range(10**5))
    ),
    "million empty maps": lambda: record(msgpack.packb({"core": [[{}] * 19_000] * 50})),
    "quarter million empty maps": lambda: bodied(Kind.COMMAND, parameters([[{}] * 19_000] * 10)),
    "a million levels deep": lambda: record(b"\x91" * (MIB - 200) + b"\xc0"),
    "a million maps deep": lambda: record(b"\x81\xa1a" * 300_000 + b"\xc0"),
    "hundred thousand unknown fields": lambda: bodied(
        Kind.COMMAND, msgpack.packb({f"{i}": None for i in range(15_000)})
    ),
    "list of wrong parameters": lambda: bodied(Kind.COMMAND, parameters({"x": [1, b""] * 60_000})),
    "many lists of wrong parameters": lambda: bodied(
        Kind.COMMAND, parameters({f"{i}": [b""] * 450 for i in range(200)})
    ),
    "many numbers that are none": lambda: bodied(Kind.COMMAND, parameters({"x": [float("nan")] * 20_000})),
    "many wrong filters": lambda: bodied(Kind.UPDATE, msgpack.packb({"filters": [{}] * 19_000})),
    "many wrong names": lambda: bodied(Kind.UPDATE, msgpack.packb({"absent": [1] * 19_000})),
    "ten gigabytes in one chunk": lambda: changed(make(Kind.UPDATE), core={"length": 10 * 10**9}),
    "two to the sixty bytes": lambda: changed(make(Kind.UPDATE), core={"length": 2**60}),
    "body over its limit": lambda: changed(make(Kind.UPDATE), body=bytes(limits.BODY + limits.OVERHEAD + 25)),
    "too many recipients": lambda: changed(make(Kind.UPDATE), to=[bytes(16)] * 1501, wraps=[bytes(112)] * 1501),
    "too many chunks": lambda: changed(make(Kind.UPDATE), chunks=[bytes(32)] * 2049),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name: str) -> None:
    made = BOMBS[name]()
    errors: list[WireError | None] = []
    refused(BOMBS["two to the sixty bytes"]())  # what is allocated once, for the first message ever, does not count
    grown = peak_growth(lambda: errors.append(refused(made)))
    assert errors[0] is not None
    assert errors[0].reason in ("malformed", "too_large", "truncated")
    assert len(str(errors[0])) < 300
    # An empty map is one byte on the wire and 64 in memory; records of 1 MiB are read where the head names them.
    assert grown < (20 if len(made.raw) <= limits.MESSAGE else 160) * MIB


def test_a_message_over_its_limit_is_refused_before_its_signature_is_looked_at(small: Made) -> None:
    class Nobody:
        def signer(self, kid: bytes) -> Participant:
            raise AssertionError("looked at the signer")

    for raw in (bytes(limits.MESSAGE + 1), small.raw + bytes(limits.MESSAGE)):
        with pytest.raises(TooLarge):
            verify(raw, Nobody(), federation=FEDERATION, kinds=ACCEPTED)
    with pytest.raises(TooLarge):
        verify(small.raw, REGISTRY, federation=FEDERATION, kinds=ACCEPTED, limit=len(small.raw) - 1)


# ---- what has to fit


def crowd(size: int) -> list[Participant]:
    return [identity(f"s{i}", Role.SITE).public for i in range(size)]


def version_for(people: list[Participant], chunks: int) -> bytes:
    length = chunks * limits.RECORDS_PER_CHUNK * limits.RECORD
    sealer = Sealer(
        AGGREGATOR,
        Kind.VERSION,
        federation=FEDERATION,
        message_id=bytes(16),
        run=RUN,
        sequence=2**62,
        version=2**62,
        spec=SPEC.digest,
        length=length,
    )
    manifest = Manifest(
        length=length, stream=sealer.core.stream, chunks=(fixed("chunk"),) * chunks, digest=fixed("plain")
    )
    return sealer.finish(bytes(8192), people, manifest)


@pytest.fixture(scope="module")
def everybody() -> list[Participant]:
    return [*crowd(limits.RECIPIENTS - 1), AGGREGATOR.public]


@pytest.mark.parametrize(("chunks", "limit"), [(1500, limits.MESSAGE), (limits.CHUNKS, limits.STORED_RECORD)])
def test_a_version_for_the_largest_federation_fits(everybody: list[Participant], chunks: int, limit: int) -> None:
    raw = version_for(everybody, chunks)
    assert len(raw) <= limit
    verified = verify(raw, REGISTRY, federation=FEDERATION, kinds={Kind.VERSION}, limit=limit)
    assert unlock(verified, AGGREGATOR)


def test_one_recipient_more_is_refused_when_sealing(everybody: list[Participant]) -> None:
    with pytest.raises(TooLarge, match="1501 recipients"):
        version_for([*everybody, SITE_A.public], 1)


def test_the_largest_body_fits_and_one_byte_more_does_not() -> None:
    made = make(Kind.SPEC, body=bytes(limits.BODY))
    assert len(made.raw) <= limits.MESSAGE
    assert len(read(made).body) == limits.BODY
    with pytest.raises(TooLarge, match="inline body"):
        make(Kind.SPEC, body=bytes(limits.BODY + 1))


def test_a_record_over_the_limit_of_the_store_is_not_signed() -> None:
    with pytest.raises(TooLarge, match="record"):
        make(Kind.HEAD, body=bytes(limits.STORED_RECORD))
