"""Who belongs to a federation, and who does not any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from protocol.cipher import Suite
from protocol.codec import encode
from protocol.envelope import seal
from protocol.errors import ConfigError, Malformed, TooLarge, Untrusted, WireError
from protocol.keys import Participant, Role
from protocol.messages import Kind
from protocol.registry import Entry, Registry, open_registry, sign_registry
from tests.support.wire import (
    AGGREGATOR,
    FEDERATION,
    GONE,
    OPERATOR,
    REGISTRY,
    ROOT,
    SITE_A,
    SITE_B,
    changed,
    identity,
    make,
)

ROOT_KEY = ROOT.public.verify_key


def test_a_member_is_found_by_key_and_by_name() -> None:
    assert REGISTRY.signer(SITE_A.kid) == SITE_A.public == REGISTRY.member("site-a")
    assert REGISTRY.members(Role.SITE) == (SITE_A.public, SITE_B.public)
    assert REGISTRY.members(Role.AGGREGATOR) == (AGGREGATOR.public,)
    assert REGISTRY.members(Role.OPERATOR) == (OPERATOR.public,)
    assert REGISTRY.members(Role.ROOT) == ()


def test_nobody_has_an_unknown_key() -> None:
    for kid in (SITE_A.box_kid, bytes(16), b"", SITE_A.public.verify_key):
        with pytest.raises(Untrusted) as refused:
            REGISTRY.signer(kid)
        assert refused.value.reason == "untrusted"


def test_who_left_is_neither_signer_nor_member() -> None:
    for ask in (lambda: REGISTRY.signer(GONE.kid), lambda: REGISTRY.member(GONE.name)):
        with pytest.raises(Untrusted) as refused:
            ask()
        assert refused.value.reason == "revoked"


def test_the_last_words_to_who_left_can_still_be_sealed() -> None:
    assert REGISTRY.former(GONE.name) == GONE.public
    assert REGISTRY.former(SITE_A.name) == SITE_A.public
    renewed = REGISTRY.with_entry(replace(identity("site-a-again", Role.SITE).public, name="site-a")).revoke("site-a")
    assert renewed.former("site-a").kid == identity("site-a-again", Role.SITE).kid
    with pytest.raises(Untrusted, match="never was"):
        REGISTRY.former("nobody")


def test_every_change_is_a_new_version_and_forgets_nobody() -> None:
    before = Registry(version=3, entries=())
    joined = before.with_entry(SITE_A.public)
    left = joined.revoke("site-a")
    assert (before.version, joined.version, left.version) == (3, 4, 5)
    assert [(e.name, e.since, e.revoked) for e in left.entries] == [("site-a", 4, 5)]
    assert left.revoke("site-a").entries == left.entries
    assert left.revoke("nobody").entries == left.entries


def test_new_keys_of_a_member_replace_the_old_ones() -> None:
    again = identity("site-a-again", Role.SITE)
    renewed = REGISTRY.with_entry(replace(again.public, name="site-a"))
    assert renewed.member("site-a").kid == again.kid
    with pytest.raises(Untrusted) as refused:
        renewed.signer(SITE_A.kid)
    assert refused.value.reason == "revoked"
    assert len(renewed.members(Role.SITE)) == 2
    assert open_registry(sign_registry(renewed, ROOT, FEDERATION, bytes(16)), ROOT_KEY, FEDERATION) == renewed


def test_another_cipher_is_a_new_version_that_members_read_and_that_later_changes_keep() -> None:
    faster = REGISTRY.with_cipher(Suite.AEGIS256)
    assert (faster.version, faster.suite, faster.entries) == (REGISTRY.version + 1, Suite.AEGIS256, REGISTRY.entries)
    assert open_registry(sign_registry(faster, ROOT, FEDERATION, bytes(16)), ROOT_KEY, FEDERATION) == faster
    assert faster.revoke("site-a").with_entry(identity("site-new", Role.SITE).public).suite is Suite.AEGIS256
    back = faster.with_cipher(Suite.XCHACHA20)
    assert (back.version, back.suite) == (REGISTRY.version + 2, Suite.XCHACHA20)


def record(body: dict[str, Any]) -> bytes:
    """What the root signs, whatever it says."""
    plain = msgpack.packb(body)
    number = REGISTRY.version
    return seal(ROOT, Kind.REGISTRY, plain, (), federation=FEDERATION, message_id=bytes(16), sequence=number)


def test_registries_from_before_there_was_a_choice_are_read_and_still_written() -> None:
    plain = msgpack.unpackb(encode(REGISTRY))
    del plain["cipher"]
    assert open_registry(record(plain), ROOT_KEY, FEDERATION) == REGISTRY
    assert REGISTRY.suite is Suite.XCHACHA20
    faster = REGISTRY.with_cipher(Suite.AEGIS256)
    for registry, named in ((REGISTRY, False), (faster, True), (faster.with_cipher(Suite.XCHACHA20), False)):
        assert (b"cipher" in sign_registry(registry, ROOT, FEDERATION, bytes(16))) is named


def test_a_cipher_of_a_newer_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(WireError, match=r"encrypts with 'rot13', which this version.*upgrade it here") as refused:
        open_registry(record(msgpack.unpackb(encode(REGISTRY)) | {"cipher": "rot13"}), ROOT_KEY, FEDERATION)
    assert refused.value.reason == "upgrade_needed"


@pytest.mark.parametrize("owner", [SITE_B, GONE], ids=["member", "left"])
def test_a_key_that_was_ever_somebodys_cannot_be_registered_again(owner: object) -> None:
    fresh = identity("site-new", Role.SITE).public
    taken = owner.public
    for thief in (replace(fresh, verify_key=taken.verify_key), replace(fresh, box_key=taken.box_key)):
        with pytest.raises(ConfigError, match="site-new"):
            REGISTRY.with_entry(thief)


def test_an_encryption_key_that_cannot_be_used_never_gets_in() -> None:
    weak = Participant(name="site-w", role=Role.SITE, verify_key=bytes(32), box_key=bytes(32))
    with pytest.raises(ConfigError, match="site-w"):
        REGISTRY.with_entry(weak)


def test_a_signed_registry_is_read_by_everybody_who_knows_the_root() -> None:
    raw = sign_registry(REGISTRY, ROOT, FEDERATION, bytes(16))
    assert open_registry(raw, ROOT_KEY, FEDERATION) == REGISTRY


def test_a_registry_that_the_root_did_not_sign_is_refused() -> None:
    for signer in (AGGREGATOR, OPERATOR, SITE_A):
        raw = sign_registry(REGISTRY, signer, FEDERATION, bytes(16))
        with pytest.raises(Untrusted) as refused:
            open_registry(raw, ROOT_KEY, FEDERATION)
        assert refused.value.reason == "untrusted"
    raw = sign_registry(REGISTRY, ROOT, FEDERATION, bytes(16))
    for other in (SITE_A.public.verify_key, bytes(32), b"short"):
        with pytest.raises(Untrusted):
            open_registry(raw, other, FEDERATION)


def test_a_registry_of_another_federation_is_refused() -> None:
    raw = sign_registry(REGISTRY, ROOT, "neurology", bytes(16))
    with pytest.raises(WireError) as refused:
        open_registry(raw, ROOT_KEY, FEDERATION)
    assert refused.value.reason == "wrong_federation"


def test_the_roots_signature_on_something_else_makes_no_registry() -> None:
    head = make(Kind.HEAD, signer=ROOT)
    with pytest.raises(WireError) as refused:
        open_registry(head.raw, ROOT_KEY, FEDERATION)
    assert refused.value.reason == "wrong_kind"
    for body in (b"", b"\x80", encode(REGISTRY) + b"\0", msgpack.packb({"version": 6, "entries": [{}]})):
        raw = seal(ROOT, Kind.REGISTRY, body, (), federation=FEDERATION, message_id=bytes(16), sequence=6)
        with pytest.raises(Malformed):
            open_registry(raw, ROOT_KEY, FEDERATION)


def test_a_registry_that_contradicts_itself_is_refused() -> None:
    other = identity("site-a-twin", Role.SITE).public
    entry = Entry(
        name="site-a", role=Role.SITE, verify_key=other.verify_key, box_key=other.box_key, since=1, revoked=None
    )
    twins = replace(REGISTRY, entries=(*REGISTRY.entries, entry))
    with pytest.raises(Malformed, match="two members"):
        open_registry(sign_registry(twins, ROOT, FEDERATION, bytes(16)), ROOT_KEY, FEDERATION)
    later = changed(make(Kind.REGISTRY), core={"sequence": REGISTRY.version + 1})
    with pytest.raises(Malformed, match="sequence"):
        open_registry(later.raw, ROOT_KEY, FEDERATION)


def test_the_largest_registry_fits_into_a_record() -> None:
    def entries(count: int) -> tuple[Entry, ...]:
        people = [identity(f"s{i}", Role.SITE).public for i in range(count)]
        return tuple(
            Entry(name=p.name, role=p.role, verify_key=p.verify_key, box_key=p.box_key, since=i + 1, revoked=None)
            for i, p in enumerate(people)
        )

    full = Registry(version=6000, entries=entries(1500) * 4)
    with pytest.raises(Malformed, match="two members"):
        open_registry(sign_registry(full, ROOT, FEDERATION, bytes(16)), ROOT_KEY, FEDERATION)
    over = replace(full, entries=(*full.entries, full.entries[0]))
    with pytest.raises((Malformed, TooLarge)):
        open_registry(sign_registry(over, ROOT, FEDERATION, bytes(16)), ROOT_KEY, FEDERATION)
