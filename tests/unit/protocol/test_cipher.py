"""Ciphers under the records: published vectors, an independent reading, and what C must never be called with."""

from __future__ import annotations

import nacl.bindings as sodium
import numpy as np
import pytest

from protocol import cipher as ours
from protocol.cipher import NewStream, RecordCipher, Suite, _Aegis256, opening, suite_of
from protocol.envelope import Sealer
from protocol.errors import Malformed, Tampered, WrongContext
from protocol.messages import Kind
from tests.support.chunks import collected
from tests.support.hostile import aegis_key, aegis_record, stream
from tests.support.wire import AGGREGATOR, FEDERATION, fixed, pattern

KEY, BOUND = fixed("key"), fixed("bound")
SUITES = pytest.mark.parametrize("suite", Suite)
WRONG = b"\xa5"
"""What output buffers are filled with, to see what is written."""


def buffer(size: int) -> memoryview:
    return memoryview(bytearray(WRONG * size))


def every_other(count: int) -> memoryview:
    """Some bytes with gaps between them."""
    return buffer(2 * count)[::2]


def pair(suite: Suite) -> tuple[RecordCipher, RecordCipher]:
    """A cipher that seals and one that opens what it sealed."""
    begun = NewStream(suite, KEY)
    return begun.cipher(BOUND), opening(begun.header, KEY, BOUND)


def sealed(cipher: RecordCipher, plain: bytes, index: int = 0, last: bool = True) -> memoryview:
    out = buffer(len(plain) + cipher.suite.overhead)
    cipher.seal(index, last, plain, out)
    return out


# ---- AEGIS-256 as published: draft-irtf-cfrg-aegis-aead, appendix "AEGIS-256 Test Vectors"

VECTOR_KEY = bytes.fromhex("1001") + bytes(30)
VECTOR_NONCE = bytes.fromhex("100002") + bytes(29)
VECTORS = [
    (
        *("", "00" * 16, "754fc3d8c973246dcc6d741412a4b236"),
        "1181a1d18091082bf0266f66297d167d2e68b845f61a3b0527d31fc7b7b89f13",
    ),
    (*("", "", ""), "6a348c930adbd654896e1666aad67de989ea75ebaa2b82fb588977b1ffec864a"),
    (
        *("0001020304050607", bytes(range(32)).hex()),
        "f373079ed84b2709faee373584585d60accd191db310ef5d8b11833df9dec711",
        "b7d28d0c3c0ebd409fd22b44160503073a547412da0854bfb9723020dab8da1a",
    ),
    (
        *("0001020304050607", bytes(range(14)).hex(), "f373079ed84b2709faee37358458"),
        "8c1cc703c81281bee3f6d9966e14948b4a175b2efbdc31e61a98b4465235c2d9",
    ),
    (
        *(bytes(range(42)).hex(), bytes(range(16, 56)).hex()),
        "57754a7d09963e7c787583a2e7b859bb24fa1e04d49fd550b2511a358e3bca252a9b1b8b30cc4a67",
        "a3aca270c006094d71c20e6910b5161c0826df233d08919a566ec2c05990f734",
    ),
]


@pytest.mark.parametrize(("ad", "plain", "ciphertext", "tag"), VECTORS)
def test_the_published_vectors_come_out_of_our_call(ad: str, plain: str, ciphertext: str, tag: str) -> None:
    cipher = _Aegis256(b"", VECTOR_NONCE[:24], KEY)  # the nonce ends like that of record 0 where it is not the last
    cipher._key = VECTOR_KEY
    text, expected = bytes.fromhex(plain), bytes.fromhex(ciphertext + tag)
    out, back = buffer(len(expected)), buffer(len(text))
    cipher._seal(bytes.fromhex(ad), 0, False, text, out)
    assert out == expected
    cipher._open(bytes.fromhex(ad), 0, False, expected, back)
    assert back == text


# ---- the specification's words, with PyNaCl's own calls


@pytest.mark.parametrize(("index", "last"), [(0, False), (0, True), (1, False), (255, True), (16383, True)])
def test_a_record_of_the_second_suite_is_what_the_specification_says(index: int, last: bool) -> None:
    begun = NewStream(Suite.AEGIS256, KEY)
    assert (len(begun.header), begun.header[0]) == (25, 2)
    got = sealed(begun.cipher(BOUND), b"some text", index, last)
    expected = aegis_record(aegis_key(KEY, BOUND), begun.header[1:], BOUND, b"some text", index=index, last=int(last))
    assert got == expected


def test_streams_of_one_key_share_no_nonce() -> None:
    assert len({NewStream(suite, KEY).header for suite in Suite for _ in range(100)}) == 200


def test_a_records_key_is_neither_the_content_key_nor_another_messages() -> None:
    def key(secret: bytes, bound: bytes) -> bytes:
        return _Aegis256(bound, bytes(24), secret)._key

    assert len({KEY, key(KEY, BOUND), key(KEY, fixed("other")), key(fixed("other"), BOUND)}) == 4


# ---- lengths, views and overlaps: refused before C sees them


def never(*_: object) -> int:
    raise AssertionError("C was called")


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of which nothing may be called."""

    class Library:
        crypto_secretstream_xchacha20poly1305_push = staticmethod(never)
        crypto_secretstream_xchacha20poly1305_pull = staticmethod(never)
        crypto_aead_aegis256_encrypt = staticmethod(never)
        crypto_aead_aegis256_decrypt = staticmethod(never)

    monkeypatch.setattr(ours, "lib", Library)


@SUITES
@pytest.mark.usefixtures("without_c")
def test_buffers_of_wrong_sizes_never_reach_c(suite: Suite) -> None:
    write, read = pair(suite)
    for plain, room in ((9, 0), (9, 9), (9, 8 + suite.overhead), (9, 10 + suite.overhead), (0, 0), (0, 1)):
        with pytest.raises(ValueError, match="do not encrypt"):
            write.seal(0, True, bytes(plain), buffer(room))
        with pytest.raises(ValueError, match="do not decrypt"):
            read.open(0, True, bytes(room), buffer(plain))
    with pytest.raises(ValueError, match="do not encrypt"):  # nine elements are not nine bytes
        write.seal(0, True, np.zeros(9, np.float32).data, buffer(9 + suite.overhead))


@SUITES
@pytest.mark.usefixtures("without_c")
def test_what_cannot_be_written_or_has_gaps_never_reaches_c(suite: Suite) -> None:
    write, read = pair(suite)
    size = 16 + suite.overhead
    for plain, room in (
        (bytes(16), buffer(size).toreadonly()),
        (bytes(16), memoryview(bytes(size))),
        (bytes(16), every_other(size)),
        (every_other(16), buffer(size)),
    ):
        with pytest.raises((ValueError, BufferError)):
            write.seal(0, True, plain, room)
    for coded, room in (
        (bytes(size), buffer(16).toreadonly()),
        (bytes(size), every_other(16)),
        (every_other(size), buffer(16)),
    ):
        with pytest.raises((ValueError, BufferError)):
            read.open(0, True, coded, room)


@SUITES
@pytest.mark.parametrize("shift", [-40, -1, 0, 1, 15, 40])
@pytest.mark.usefixtures("without_c")
def test_buffers_that_overlap_never_reach_c(suite: Suite, shift: int) -> None:
    write, read = pair(suite)
    whole, size = buffer(300), 64 + suite.overhead
    short, long = whole[100 + shift : 164 + shift], whole[100 : 100 + size]
    with pytest.raises(ValueError, match="overlap"):
        write.seal(0, True, short, long)
    with pytest.raises(ValueError, match="overlap"):
        read.open(0, True, long, short)


@SUITES
def test_buffers_that_touch_do_not_overlap(suite: Suite) -> None:
    write, read = pair(suite)
    whole, size = buffer(2 * 64 + suite.overhead), 64 + suite.overhead
    whole[:64] = pattern(64)
    write.seal(0, True, whole[:64], whole[64 : 64 + size])
    read.open(0, True, whole[64 : 64 + size], whole[:64])
    assert whole[:64] == pattern(64)


@SUITES
def test_floats_are_encrypted_as_their_bytes(suite: Suite) -> None:
    write, read = pair(suite)
    numbers, back = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    out = buffer(64 + suite.overhead)
    write.seal(0, True, numbers.data, out)
    read.open(0, True, out, back.data)
    np.testing.assert_array_equal(back, numbers)


@SUITES
def test_a_record_of_no_bytes_is_only_its_tag(suite: Suite) -> None:
    write, read = pair(suite)
    out = sealed(write, b"")
    assert len(out) == suite.overhead
    read.open(0, True, out, buffer(0))


@pytest.mark.parametrize("index", [2**32, 2**64, -1])
@pytest.mark.usefixtures("without_c")
def test_an_index_that_the_nonce_does_not_hold_is_refused(index: int) -> None:
    write, read = pair(Suite.AEGIS256)
    with pytest.raises((OverflowError, ValueError)):
        write.seal(index, True, b"", buffer(32))
    with pytest.raises(OverflowError):
        read.open(index, True, bytes(32), buffer(0))


# ---- what is not authentic is not seen


@SUITES
@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_wrong_tag_leaves_nothing_of_the_plaintext(suite: Suite, place: int) -> None:
    write, read = pair(suite)
    plain = b"the secret of a patient: " * 40
    out, back = sealed(write, plain), buffer(len(plain))
    out[place] ^= 1
    with pytest.raises(Tampered, match="record 0 does not decrypt"):
        read.open(0, True, out, back)
    assert bytes(back) in (WRONG * len(plain), bytes(len(plain)))
    out[place] ^= 1
    read.open(0, True, out, back)  # a failure moves nothing on: the right bytes may be had elsewhere
    assert back == plain


@SUITES
@pytest.mark.parametrize("last", [False, True])
def test_a_record_that_ends_the_stream_in_the_wrong_place_leaves_nothing_of_the_plaintext(
    suite: Suite, last: bool
) -> None:
    write, read = pair(suite)
    plain = b"the secret of a patient: " * 40
    back = np.full(len(plain) // 4, 7, np.float32)
    with pytest.raises(Tampered):
        read.open(0, not last, sealed(write, plain, last=last), back.data)
    assert bytes(back.view(np.uint8)) in (np.full(len(plain) // 4, 7, np.float32).tobytes(), bytes(len(plain)))


@SUITES
@pytest.mark.parametrize(("index", "bound"), [(1, BOUND), (0, fixed("other"))])
def test_a_record_opens_in_its_place_only(suite: Suite, index: int, bound: bytes) -> None:
    begun = NewStream(suite, KEY)
    out = sealed(begun.cipher(BOUND), b"text")
    with pytest.raises(Tampered):
        opening(begun.header, KEY, bound).open(index, True, out, buffer(4))


# ---- one text for one nonce


@SUITES
def test_a_stream_is_written_once(suite: Suite) -> None:
    begun = NewStream(suite, KEY)
    begun.cipher(BOUND)
    for bound in (BOUND, fixed("other")):
        with pytest.raises(ValueError, match="written once"):
            begun.cipher(bound)


@SUITES
def test_a_message_has_one_writer(suite: Suite) -> None:
    sealer = Sealer(AGGREGATOR, Kind.STATE, federation=FEDERATION, message_id=bytes(16), length=5, suite=suite)
    sealer.writer(collected([]))
    with pytest.raises(ValueError, match="written once"):
        sealer.writer(collected([]))


@SUITES
def test_a_record_is_encrypted_once(suite: Suite) -> None:
    write, _ = pair(suite)
    for index in (0, 1, 5):
        sealed(write, b"one text", index, False)
        for before in range(index + 1):
            with pytest.raises(ValueError, match="encrypted before"):
                sealed(write, b"another text", before, False)


# ---- which suite


def test_a_stream_header_names_its_suite() -> None:
    assert [suite_of(NewStream(suite, KEY).header) for suite in Suite] == list(Suite)
    for size in (0, 1, 23, 26, 32):
        with pytest.raises(Malformed):
            suite_of(bytes([2] * size))
    with pytest.raises(Malformed):
        suite_of(bytes([1] * 25))
    for number in set(range(256)) - {1, 2}:
        with pytest.raises(WrongContext) as refused:
            suite_of(bytes([number]) + bytes(24))
        assert refused.value.reason == "upgrade_needed"


def test_the_first_suite_is_libsodiums_own_stream() -> None:
    header, (record,) = stream(
        KEY, [(b"text", BOUND + bytes(8), sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL)]
    )
    back = buffer(4)
    opening(header, KEY, BOUND).open(0, True, record, back)
    assert back == b"text"
