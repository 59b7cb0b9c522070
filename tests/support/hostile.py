"""Messages that have to be refused, each under the reason that has to be given; made from the fixed keys of `wire`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import nacl.bindings as sodium

from protocol import limits
from protocol.cipher import Suite
from protocol.codec import encode
from protocol.keys import Identity, Role
from protocol.messages import Kind
from tests.support.wire import (
    AGGREGATOR,
    BODIES,
    GONE,
    OPERATOR,
    SITE_A,
    SITE_B,
    Made,
    changed,
    fixed,
    identity,
    make,
    parts,
    pattern,
    signed,
)

ACCEPTED = frozenset(Kind) - {Kind.REPLY}
"""What the reader of these messages takes; the reader is the aggregator."""
STRANGER = identity("stranger", Role.SITE)
FINAL, PUSH = 3, 1


def flip(raw: bytes, bit: int) -> bytes:
    """`raw` with one bit turned."""
    turned = bytearray(raw)
    turned[bit // 8] ^= 1 << bit % 8
    return bytes(turned)


def commitment(secret: bytes) -> bytes:
    """What the core says about a content key."""
    return hashlib.sha256(b"fledge/v1/commitment\0" + secret).digest()


def associated(core: bytes) -> bytes:
    """What binds ciphertext and wrapped keys to a core."""
    return hashlib.sha256(b"fledge/v1/core\0" + core).digest()


def stream(secret: bytes, pushes: list[tuple[bytes, bytes, int]]) -> tuple[bytes, list[bytes]]:
    """A secretstream's header and what each (plaintext, associated data, tag) became."""
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    header = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, secret)
    return header, [sodium.crypto_secretstream_xchacha20poly1305_push(state, *push) for push in pushes]


def hand_made(
    *,
    length: int = 100,
    tag: int = FINAL,
    index: int = 0,
    body_tag: int = FINAL,
    body_label: bytes = b"body",
    other_key: bool = False,
    said: dict[str, Any] | None = None,
) -> Made:
    """An evaluation with a blob, sealed by hand, so that any step can be done wrongly."""
    secret, shown = fixed("content key"), fixed("another key")
    plain = pattern(length)
    _, core = parts(make(Kind.EVALUATION).raw)
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    start = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, secret)
    core.update(
        length=length, record=limits.RECORD, stream=start, commitment=commitment(shown if other_key else secret)
    )
    packed = msgpack.packb(core)
    bound = associated(packed)
    chunk = sodium.crypto_secretstream_xchacha20poly1305_push(state, plain, bound + index.to_bytes(8, "big"), tag)
    words = msgpack.packb({"examples": 1, "metrics": {}} if said is None else said)
    body_start, (body,) = stream(secret, [(words, bound + body_label, body_tag)])
    header = {
        "core": packed,
        "to": [AGGREGATOR.box_kid],
        "wraps": [sodium.crypto_box_seal(secret + bound, AGGREGATOR.public.box_key)],
        "chunks": [hashlib.sha256(chunk).digest()],
        "digest": hashlib.sha256(plain).digest(),
        "body": body_start + body,
    }
    return Made(signed(header, signer=SITE_A, kind=Kind.EVALUATION), (chunk,))


def aegis_key(secret: bytes, bound: bytes) -> bytes:
    """The key of a blob in suite 2, in the words of the specification."""
    return hmac.new(secret, b"fledge/v2/aegis-256\0" + bound, hashlib.sha256).digest()


def aegis_record(key: bytes, random: bytes, bound: bytes, plain: bytes, *, index: int = 0, last: int = 1) -> bytes:
    """A record in suite 2, by PyNaCl's own call."""
    nonce = random + index.to_bytes(4, "big") + last.to_bytes(4, "big")
    return sodium.crypto_aead_aegis256_encrypt(plain, bound + index.to_bytes(8, "big"), nonce, key)


def hand_made_aegis(
    *,
    head: bytes = b"\2",
    key: Callable[[bytes, bytes], bytes] = aegis_key,
    body_key: Callable[[bytes, bytes], bytes] = lambda secret, _bound: secret,
    digest: bool = False,
    core: dict[str, Any] | None = None,
    **place: int,
) -> Made:
    """An update with a blob of one record in suite 2, sealed by hand, so that any step can be done wrongly.

    `head`: what the stream header says before its random bytes; `core`: what the record's key is derived with instead.
    """
    secret, random, plain = fixed("content key"), fixed("random")[:24], pattern(100)
    _, said = parts(make(Kind.UPDATE).raw)
    said.update(length=len(plain), record=limits.RECORD, stream=head + random, commitment=commitment(secret))
    packed = msgpack.packb(said)
    bound = associated(packed)
    chunk = aegis_record(
        key(secret, associated(msgpack.packb({**said, **(core or {})}))), random, bound, plain, **place
    )
    start, (body,) = stream(body_key(secret, bound), [(encode(BODIES[Kind.UPDATE]), bound + b"body", FINAL)])
    header = {
        "core": packed,
        "to": [AGGREGATOR.box_kid],
        "wraps": [sodium.crypto_box_seal(secret + bound, AGGREGATOR.public.box_key)],
        "chunks": [hashlib.sha256(chunk).digest()],
        "digest": hashlib.sha256(plain).digest() if digest else b"",
        "body": start + body,
    }
    return Made(signed(header, signer=SITE_A, kind=Kind.UPDATE), (chunk,))


def _aegis_attacks() -> dict[str, Made]:
    """What is particular to suites, and to the second one."""
    old, update = make(Kind.UPDATE), make(Kind.UPDATE, suite=Suite.AEGIS256)
    stream_of = parts(update.raw)[1]["stream"]
    return {
        "malformed--suite-1-named-in-25-bytes": changed(update, core={"stream": b"\1" + stream_of[1:]}),
        "malformed--stream-header-of-26-bytes": changed(update, core={"stream": stream_of + b"\0"}),
        "malformed--aegis256-update-with-plaintext-digest": changed(update, digest=bytes(32)),
        "malformed--aegis256-state-with-plaintext-digest": changed(
            make(Kind.STATE, suite=Suite.AEGIS256), digest=bytes(32)
        ),
        "malformed--aegis256-version-without-plaintext-digest": changed(
            make(Kind.VERSION, suite=Suite.AEGIS256), digest=b""
        ),
        "malformed--aegis256-code-without-plaintext-digest": changed(make(Kind.CODE, suite=Suite.AEGIS256), digest=b""),
        "malformed--aegis256-under-24-bytes": hand_made_aegis(head=b""),
        "truncated--aegis256-under-24-bytes-with-digest": hand_made_aegis(head=b"", digest=True),
        "truncated--aegis256-chunk-cut-short": replace(update, chunks=(update.chunks[0][:-1],)),
        "truncated--aegis256-chunk-missing": replace(update, chunks=()),
        "truncated--aegis256-chunk-twice": replace(update, chunks=update.chunks * 2),
        "tampered--aegis256-bit-in-chunk": replace(update, chunks=(flip(update.chunks[0], 99),)),
        "tampered--aegis256-chunk-of-another-update": replace(
            update, chunks=make(Kind.UPDATE, suite=Suite.AEGIS256, sequence=18).chunks
        ),
        "tampered--aegis256-record-at-another-place": hand_made_aegis(index=1),
        "tampered--aegis256-blob-without-end": hand_made_aegis(last=0),
        "tampered--aegis256-blob-with-other-end": hand_made_aegis(last=2),
        "tampered--aegis256-blob-under-the-content-key": hand_made_aegis(key=lambda secret, _bound: secret),
        "tampered--aegis256-body-under-the-blobs-key": hand_made_aegis(body_key=aegis_key),
        "tampered--aegis256-key-of-another-core": hand_made_aegis(core={"sequence": 18}),
        "wrong_wrap--suite-2-written-over-suite-1": changed(
            old, core={"stream": b"\2" + parts(old.raw)[1]["stream"]}, digest=b""
        ),
        "wrong_wrap--aegis256-other-random-bytes": changed(update, core={"stream": b"\2" + bytes(24)}),
        "upgrade_needed--suite-0": changed(update, core={"stream": b"\0" + stream_of[1:]}),
        "upgrade_needed--suite-7": changed(update, core={"stream": b"\7" + stream_of[1:]}),
        "upgrade_needed--suite-7-with-digest-and-other-chunks": changed(
            old, core={"stream": b"\7" + stream_of[1:]}, chunks=[bytes(32)] * 5
        ),
        "upgrade_needed--suite-255": hand_made_aegis(head=b"\xff"),
    }


def _twice(packed: bytes, key: str) -> bytes:
    """A packed map with one more entry under a key that it already has."""
    return bytes([packed[0] + 1]) + packed[1:] + msgpack.packb(key) + msgpack.packb(b"")


def _raw(change: Callable[[bytes], bytes]) -> Made:
    update = make(Kind.UPDATE)
    return replace(update, raw=change(update.raw))


def _packed(header: bytes) -> Made:
    return replace(make(Kind.UPDATE), raw=signed(header, signer=SITE_A, kind=Kind.UPDATE))


def attacks() -> dict[str, Made]:
    """Name, beginning with the reason, to message."""
    update = make(Kind.UPDATE)
    header, core = parts(update.raw)
    packed, inner = update.raw[26:-64], header["core"]
    of_b = make(Kind.UPDATE, signer=SITE_B)
    of_b_header, _ = parts(of_b.raw)
    stolen = msgpack.packb({**core, "sender": SITE_B.kid})
    return {
        "bad_frame--empty": Made(b""),
        "bad_frame--other-magic": _raw(lambda raw: b"FLDG9" + raw[5:]),
        "bad_frame--cut-short": _raw(lambda raw: raw[:-1]),
        "bad_frame--one-byte-more": _raw(lambda raw: raw + b"\0"),
        "bad_frame--four-gigabytes": _raw(lambda raw: raw[:22] + b"\xff" * 4 + raw[26:]),
        "bad_signature--forged-by-another-site": _raw(
            lambda raw: raw[:-64] + SITE_B.sign.sign(b"fledge/v1/envelope\0" + raw[:-64]).signature
        ),
        "bad_signature--without-purpose": _raw(lambda raw: raw[:-64] + SITE_A.sign.sign(raw[:-64]).signature),
        "bad_signature--bit-in-header": _raw(lambda raw: flip(raw, 8 * 300)),
        "bad_signature--bit-in-kind": _raw(lambda raw: flip(raw, 8 * 5 + 7)),
        "bad_signature--zeros": _raw(lambda raw: raw[:-64] + bytes(64)),
        "untrusted--stranger": make(Kind.UPDATE, signer=STRANGER),
        "untrusted--bit-in-kid": _raw(lambda raw: flip(raw, 8 * 6)),
        "revoked--member-that-left": make(Kind.UPDATE, signer=GONE),
        "malformed--header-not-msgpack": _packed(b"\xc1"),
        "malformed--header-not-a-map": _packed(b"\x90"),
        "malformed--bytes-after-header": _packed(packed + b"\0"),
        "malformed--header-key-twice": _packed(_twice(packed, "body")),
        "malformed--unknown-field": changed(update, extra=1),
        "malformed--nested-deep": _packed(b"\x91" * 3000 + b"\xc0"),
        "malformed--array-bomb": _packed(b"\x81\xa4core\xdd\xff\xff\xff\xff"),
        "malformed--map-bomb": _packed(b"\xdf\xff\xff\xff\xff"),
        "malformed--extension": _packed(b"\x81\xa4core\xc7\x00\x05"),
        "malformed--number-as-key": _packed(b"\x81\x01\x01"),
        "malformed--broken-text": _packed(b"\x81\xa4\xff\xff\xff\xff\x01"),
        "malformed--core-key-twice": _packed(msgpack.packb({**header, "core": _twice(inner, "spec")})),
        "malformed--bytes-after-core": _packed(msgpack.packb({**header, "core": inner + b"\0"})),
        "malformed--version-zero": changed(update, core={"v": 0}),
        "malformed--version-true": changed(update, core={"v": True}),
        "malformed--negative-sequence": changed(update, core={"sequence": -1}),
        "malformed--sequence-beyond-63-bits": changed(update, core={"sequence": 2**63}),
        "malformed--sequence-as-real": changed(update, core={"sequence": 17.0}),
        "malformed--run-as-bytes": changed(update, core={"run": b"run-1"}),
        "malformed--run-as-path": changed(update, core={"run": "../heads/x"}),
        "malformed--short-spec-digest": changed(update, core={"spec": bytes(31)}),
        "malformed--other-record-size": changed(update, core={"record": 2**60}),
        "malformed--no-stream-header": changed(update, core={"stream": b""}),
        "malformed--no-commitment": changed(update, core={"commitment": b""}),
        "malformed--more-wraps-than-recipients": changed(update, wraps=header["wraps"] * 2),
        "malformed--recipients-without-wraps": changed(update, wraps=[]),
        "malformed--short-wrap": changed(update, wraps=[bytes(111)]),
        "malformed--no-plaintext-digest": changed(update, digest=b""),
        "malformed--chunks-without-blob": changed(make(Kind.EVALUATION), chunks=[bytes(32)]),
        "malformed--blob-in-the-clear": changed(
            update, core={"commitment": b""}, to=[], wraps=[], body=encode(BODIES[Kind.UPDATE])
        ),
        "malformed--sealed-without-commitment": changed(make(Kind.EVALUATION), core={"commitment": b""}),
        "malformed--commitment-in-the-clear": changed(make(Kind.HEAD), core={"commitment": bytes(32)}),
        "malformed--body-with-nan": hand_made(said={"examples": 1, "metrics": {"loss": float("nan")}}),
        "malformed--body-of-another-kind": make(Kind.UPDATE, body=msgpack.packb({"examples": 1, "metrics": {}})),
        "malformed--body-with-escape-sequence": hand_made(said={"examples": 1, "metrics": {"\x1b[2J": 1.0}}),
        "too_large--two-to-the-60-bytes": changed(update, core={"length": 2**60}),
        "too_large--one-byte-over": changed(update, core={"length": limits.BLOB + 1}),
        "truncated--ten-gigabytes-in-one-chunk": changed(update, core={"length": 10 * 10**9}),
        "truncated--no-chunks": changed(update, chunks=[]),
        "truncated--chunk-cut-short": replace(update, chunks=(update.chunks[0][:-1],)),
        "truncated--chunk-missing": replace(update, chunks=()),
        "truncated--chunk-twice": replace(update, chunks=update.chunks * 2),
        "truncated--blob-without-end": hand_made(tag=0),
        "truncated--blob-with-other-tag": hand_made(tag=PUSH),
        "truncated--body-without-end": hand_made(body_tag=0),
        "tampered--bit-in-chunk": replace(update, chunks=(flip(update.chunks[0], 99),)),
        "tampered--chunk-of-another-update": replace(update, chunks=make(Kind.UPDATE, sequence=18).chunks),
        "tampered--record-at-another-place": hand_made(index=1),
        "tampered--key-that-was-not-committed-to": hand_made(other_key=True),
        "tampered--body-as-record": hand_made(body_label=bytes(8)),
        "tampered--body-of-another-message": changed(update, body=of_b_header["body"]),
        "tampered--body-empty": changed(update, body=b""),
        "tampered--wrap-garbage": changed(update, wraps=[bytes(112)]),
        "tampered--other-plaintext-digest": changed(update, digest=bytes(32)),
        "wrong_wrap--of-another-update": changed(update, wraps=parts(make(Kind.UPDATE, sequence=18).raw)[0]["wraps"]),
        "wrong_wrap--other-base-version": changed(update, core={"version": 8}),
        "wrong_wrap--signature-stripped": replace(
            update, raw=signed({**header, "core": stolen}, signer=SITE_B, kind=Kind.UPDATE)
        ),
        "wrong_context--signed-by-another-site": changed(update, signer=SITE_B),
        "wrong_context--kind-changed": replace(update, raw=signed(packed, signer=SITE_A, kind=Kind.EVALUATION)),
        "wrong_federation--neighbour": make(Kind.UPDATE, federation="neurology"),
        "wrong_kind--reply-where-none-belongs": make(Kind.REPLY),
        "wrong_role--site-signs-version": make(Kind.VERSION, signer=SITE_A),
        "wrong_role--site-signs-receipt": make(Kind.RECEIPT, signer=SITE_A, to=[AGGREGATOR]),
        "wrong_role--site-signs-command": make(Kind.COMMAND, signer=SITE_A),
        "wrong_role--operator-signs-update": make(Kind.UPDATE, signer=OPERATOR),
        "wrong_role--operator-signs-head": make(Kind.HEAD, signer=OPERATOR),
        "wrong_role--operator-signs-code": make(Kind.CODE, signer=OPERATOR),
        "wrong_role--site-signs-bundle": make(Kind.BUNDLE, signer=SITE_A),
        "wrong_role--operator-signs-card": make(Kind.CARD, signer=OPERATOR),
        "wrong_role--aggregator-signs-update": make(Kind.UPDATE, signer=AGGREGATOR),
        "wrong_role--aggregator-signs-registry": changed(
            make(Kind.REGISTRY), signer=AGGREGATOR, core={"sender": AGGREGATOR.kid}
        ),
        "not_for_us--sealed-for-a-site": make(Kind.UPDATE, to=[SITE_B]),
        "upgrade_needed--version-two": changed(update, core={"v": 2}),
        "upgrade_needed--version-two-with-more": changed(update, core={"v": 2, "post_quantum": b"x"}, proof=b"y"),
        "upgrade_needed--kind-200": replace(
            update,
            raw=signed({**header, "core": msgpack.packb({**core, "kind": 200})}, signer=SITE_A, kind=200),
        ),
        **_aegis_attacks(),
    }


def forwarded() -> tuple[Made, Identity]:
    """An update that its recipient opened and sealed again for a third party, with the sender's signature."""
    update = make(Kind.UPDATE)
    header, _ = parts(update.raw)
    secret = sodium.crypto_box_seal_open(header["wraps"][0], bytes(AGGREGATOR.box.public_key), bytes(AGGREGATOR.box))
    header["to"], header["wraps"] = [SITE_B.box_kid], [sodium.crypto_box_seal(secret, SITE_B.public.box_key)]
    packed = msgpack.packb(header)
    frame = update.raw[:22] + len(packed).to_bytes(4, "big") + packed
    return replace(update, raw=frame + update.raw[-64:]), SITE_B
