"""Sealing, verifying and opening, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol import limits
from protocol.blob import Manifest
from protocol.codec import encode
from protocol.envelope import NO_RUN, ContentKey, Sealer, body, raw_body, reissue, seal, unlock, verify
from protocol.errors import Malformed, Tampered, TooLarge, Untrusted, WireError, WrongContext
from protocol.keys import Participant, Role
from protocol.messages import BODY, SIGNER, Event, Kind, Update
from tests.support.bodies import typed_body
from tests.support.chunks import collected, plaintext
from tests.support.wire import (
    AGGREGATOR,
    BLOBS,
    BODIES,
    FEDERATION,
    REGISTRY,
    RUN,
    SENDER,
    SITE_A,
    SITE_B,
    SPEC,
    TO,
    Made,
    RootTrust,
    fixed,
    identity,
    make,
    parts,
    pattern,
    payload,
    read,
)

CONTEXT: dict[str, Any] = {"federation": FEDERATION, "message_id": bytes(16)}


def checked(made: Made, *kinds: Kind) -> Any:
    """The envelope, verified under the registry."""
    return verify(made.raw, REGISTRY, federation=FEDERATION, kinds=kinds or set(Kind), limit=limits.STORED_RECORD)


@pytest.mark.parametrize("kind", set(Kind) - {Kind.REGISTRY})
def test_a_message_of_every_kind_says_what_was_sealed(kind: Kind) -> None:
    made = make(kind)
    said = read(made, (*TO[kind], AGGREGATOR)[0])
    assert said.sender == SENDER[kind].name
    assert said.body == BODIES.get(kind, b"")
    assert said.blob == (payload(kind) if kind in BLOBS else None)
    core = said.core
    assert (core.v, core.kind, core.federation, core.sender) == (1, kind, FEDERATION, SENDER[kind].kid)
    assert (core.record, core.length) == ((limits.RECORD, len(payload(kind))) if kind in BLOBS else (0, 0))


def test_a_message_about_no_run_says_so() -> None:
    core = checked(make(Kind.HEAD)).core
    assert (core.run, core.epoch, core.version, core.spec) == (NO_RUN, 0, 0, b"")


def test_what_stands_in_the_clear_says_so() -> None:
    verified = checked(make(Kind.HEAD))
    assert verified.recipients == ()
    assert verified.core.commitment == b""
    assert typed_body(verified) == BODIES[Kind.HEAD]
    assert raw_body(verified) == encode(BODIES[Kind.HEAD])
    with pytest.raises(WrongContext) as refused:
        unlock(verified, AGGREGATOR)
    assert refused.value.reason == "not_for_us"


def test_a_sealed_body_shows_nothing_without_the_key() -> None:
    made = make(Kind.UPDATE)
    verified = checked(made)
    for secret in (b"digits-mlp", b"accuracy", encode(BODIES[Kind.UPDATE])[:20], payload(Kind.UPDATE)[-16:]):
        assert secret not in made.raw
        assert secret not in b"".join(made.chunks)
    with pytest.raises(WrongContext) as refused:
        typed_body(verified)
    assert refused.value.reason == "not_for_us"


def test_every_recipient_and_nobody_else_can_open_it() -> None:
    verified = checked(make(Kind.VERSION))
    keys = [unlock(verified, reader) for reader in (SITE_A, SITE_B, AGGREGATOR)]
    assert len(set(keys)) == 1
    assert verified.recipients == tuple(i.box_kid for i in (SITE_A, SITE_B, AGGREGATOR))
    with pytest.raises(WrongContext):
        unlock(verified, identity("site-c", Role.SITE))


def test_a_content_key_does_not_show() -> None:
    key = unlock(checked(make(Kind.UPDATE)), AGGREGATOR)
    assert repr(key) == str(key) == "ContentKey(…)"
    assert repr(key.secret)[2:-1] not in repr((key, {"key": key}))


def test_the_same_content_never_looks_the_same() -> None:
    first, second = make(Kind.UPDATE), make(Kind.UPDATE)
    assert first.chunks != second.chunks
    assert parts(first.raw)[1]["commitment"] != parts(second.raw)[1]["commitment"]


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_is_signed_by_one_role_only(kind: Kind) -> None:
    for role in set(Role) - {SIGNER[kind]}:
        impostor = identity("impostor", role)

        class Trusting:
            def signer(self, kid: bytes, who: Participant = impostor.public) -> Participant:
                return who

        made = make(kind, signer=impostor)
        with pytest.raises(Untrusted) as refused:
            verify(made.raw, Trusting(), federation=FEDERATION, kinds={kind})
        assert refused.value.reason == "wrong_role"


def test_a_body_is_read_as_its_kind_and_nothing_else() -> None:
    verified = checked(make(Kind.UPDATE))
    key = unlock(verified, AGGREGATOR)
    assert body(verified, Update, key) == typed_body(verified, key)
    with pytest.raises(Malformed):
        body(verified, Event, key)


def test_a_message_that_nobody_could_read_is_not_signed() -> None:
    manifest = Manifest(length=5, stream=bytes(24), chunks=(bytes(32),), digest=bytes(32))
    people = [AGGREGATOR.public]
    for clear, to, length, blob in (
        (False, [], 0, None),
        (True, people, 0, None),
        (False, people, 5, None),
        (False, people, 0, manifest),
    ):
        sealer = Sealer(SITE_A, Kind.UPDATE, clear=clear, length=length, **CONTEXT)
        with pytest.raises(Malformed):
            sealer.finish(b"", to, blob)


def test_a_blob_in_the_clear_cannot_be_begun() -> None:
    with pytest.raises(Malformed, match="clear"):
        Sealer(SITE_A, Kind.UPDATE, clear=True, length=5, **CONTEXT)


def test_a_recipient_with_an_unusable_key_is_named() -> None:
    weak = Participant(name="site-w", role=Role.SITE, verify_key=bytes(32), box_key=bytes(32))
    with pytest.raises(Untrusted, match="site-w"):
        seal(AGGREGATOR, Kind.VERSION, BODIES[Kind.VERSION], [AGGREGATOR.public, weak], **CONTEXT)


def test_the_writer_of_a_message_can_read_it_back_before_it_is_signed() -> None:
    chunks: list[bytes] = []
    sealer = Sealer(SITE_A, Kind.UPDATE, length=5, **CONTEXT)
    writer = sealer.writer(collected(chunks))
    writer.write(b"hello")
    manifest = writer.finish()
    assert plaintext(sealer.key.reader(manifest), chunks) == b"hello"
    raw = sealer.finish(encode(BODIES[Kind.UPDATE]), [AGGREGATOR.public], manifest)
    assert unlock(checked(Made(raw)), AGGREGATOR) == sealer.key
    assert checked(Made(raw)).manifest == manifest
    assert checked(Made(raw)).core == sealer.core


# ---- wrapping again


def reissued(made: Made, *people: Any, words: bytes | None = None) -> Made:
    verified = checked(made)
    key = unlock(verified, AGGREGATOR)
    said = encode(BODIES[Kind.VERSION]) if words is None else words
    return replace(made, raw=reissue(verified, key, AGGREGATOR, said, [p.public for p in people]))


def test_a_newcomer_reads_the_same_ciphertext_and_who_left_gets_no_key() -> None:
    newcomer = identity("site-c", Role.SITE)
    old = make(Kind.VERSION)
    new = reissued(old, AGGREGATOR, SITE_A, newcomer)
    assert read(new, newcomer).blob == read(old, SITE_B).blob == payload(Kind.VERSION)
    assert parts(new.raw)[0]["core"] == parts(old.raw)[0]["core"]
    with pytest.raises(WrongContext):
        read(new, SITE_B)


def test_only_its_sender_wraps_a_message_again() -> None:
    verified = checked(make(Kind.UPDATE))
    key = unlock(verified, AGGREGATOR)
    with pytest.raises(Untrusted, match="only the sender"):
        reissue(verified, key, AGGREGATOR, b"", [SITE_B.public])


def test_wrapping_again_keeps_the_limits() -> None:
    made = make(Kind.VERSION)
    with pytest.raises(Malformed, match="nobody"):
        reissued(made)
    with pytest.raises(TooLarge, match="inline body"):
        reissued(made, SITE_A, words=bytes(limits.BODY + 1))
    with pytest.raises(TooLarge, match="recipients"):
        reissued(made, *[SITE_A] * (limits.RECIPIENTS + 1))


# ---- trust


def test_a_key_of_the_wrong_shape_in_a_trust_is_a_bad_signature() -> None:
    class Careless:
        def signer(self, kid: bytes) -> Participant:
            return Participant(name="x", role=Role.SITE, verify_key=b"short", box_key=bytes(32))

    with pytest.raises(Untrusted) as refused:
        verify(make(Kind.UPDATE).raw, Careless(), federation=FEDERATION, kinds={Kind.UPDATE})
    assert refused.value.reason == "bad_signature"


def test_the_registry_does_not_trust_the_root_and_the_root_trusts_nobody_else() -> None:
    with pytest.raises(Untrusted):
        read(make(Kind.REGISTRY))
    assert read(make(Kind.REGISTRY), trust=RootTrust()).sender == "root"


def test_checks_come_in_the_documented_order() -> None:
    """Each message is wrong in two ways; the reason is the one that is checked first."""
    expected = [
        (make(Kind.VERSION, signer=SITE_A, federation="neurology"), "wrong_federation"),
        (make(Kind.VERSION, signer=SITE_A), "wrong_kind"),
        (replace(make(Kind.UPDATE, federation="neurology"), raw=make(Kind.UPDATE).raw[:-1]), "bad_frame"),
    ]
    for made, reason in expected:
        with pytest.raises(WireError) as refused:
            verify(made.raw, REGISTRY, federation=FEDERATION, kinds={Kind.UPDATE})
        assert refused.value.reason == reason


def test_a_wrong_content_key_opens_no_body() -> None:
    verified = checked(make(Kind.UPDATE))
    with pytest.raises(Tampered):
        typed_body(verified, ContentKey(fixed("other"), unlock(verified, AGGREGATOR).associated))


def test_every_kind_has_a_signer_and_all_but_two_a_body() -> None:
    assert set(SIGNER) == set(Kind)
    assert set(Kind) - set(BODY) == {Kind.REGISTRY, Kind.SPEC, Kind.CODE}
    assert RUN != NO_RUN
    assert len(SPEC.digest) == len(pattern(32)) == 32
