"""Keys: ids, files, sealed boxes, and that secrets do not show."""

from __future__ import annotations

import hashlib

import msgpack
import nacl.bindings as sodium
import nacl.exceptions
import pytest

from protocol.errors import Malformed, Untrusted, WireError
from protocol.keys import Identity, Participant, Role, _Secrets, key_id
from tests.support.wire import AGGREGATOR, SITE_A, SITE_B, fixed


def test_a_key_id_is_the_beginning_of_the_keys_hash() -> None:
    public = SITE_A.public
    assert public.kid == SITE_A.kid == key_id(public.verify_key) == hashlib.sha256(public.verify_key).digest()[:16]
    assert public.box_kid == SITE_A.box_kid == hashlib.sha256(public.box_key).digest()[:16]
    assert len({SITE_A.kid, SITE_A.box_kid, SITE_B.kid, SITE_B.box_kid}) == 4


def test_fresh_identities_share_nothing() -> None:
    first, second = (Identity.generate("site-a", Role.SITE) for _ in range(2))
    assert first.public.verify_key != second.public.verify_key
    assert first.public.box_key != second.public.box_key


def test_an_identity_survives_its_file() -> None:
    for identity in (Identity.generate("site-x", Role.SITE), AGGREGATOR):
        again = Identity.from_bytes(identity.to_bytes())
        assert again.public == identity.public
        assert again.role is identity.role
        assert bytes(again.sign) == bytes(identity.sign)
        assert bytes(again.box) == bytes(identity.box)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "king"},
        {"role": b"site"},
        {"sign": bytes(31)},
        {"box": bytes(33)},
        {"box": "x" * 32},
        {"name": "a b"},
        {"name": ""},
        {"v": 0},
        {"extra": 1},
    ],
)
def test_a_damaged_key_file_is_refused_without_showing_it(change: dict[str, object]) -> None:
    plain = msgpack.unpackb(SITE_A.to_bytes())
    with pytest.raises(Malformed) as refused:
        Identity.from_bytes(msgpack.packb({**plain, **change}))
    assert repr(bytes(SITE_A.sign)) not in str(refused.value)


@pytest.mark.parametrize("raw", [b"", b"not a key", bytes(2000)])
def test_what_is_no_key_file_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        Identity.from_bytes(raw)


def test_a_key_file_of_a_newer_version_says_so() -> None:
    plain = msgpack.unpackb(SITE_A.to_bytes())
    with pytest.raises(WireError) as refused:
        Identity.from_bytes(msgpack.packb({**plain, "v": 2}))
    assert refused.value.reason == "upgrade_needed"


def test_secrets_do_not_show() -> None:
    secrets = _Secrets(v=1, name="site-a", role="site", sign=bytes(SITE_A.sign), box=bytes(SITE_A.box))
    for shown in (repr(SITE_A), str(SITE_A), repr(secrets), repr(SITE_A.public)):
        for secret in (bytes(SITE_A.sign), bytes(SITE_A.box)):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown
    assert repr(SITE_A) == f"Identity('site-a', site, kid={SITE_A.kid.hex()[:8]})"


def test_only_the_owner_opens_what_was_wrapped() -> None:
    sealed = SITE_A.public.wrap(b"secret")
    assert sodium.crypto_box_seal_open(sealed, bytes(SITE_A.box.public_key), bytes(SITE_A.box)) == b"secret"
    assert SITE_A.public.wrap(b"secret") != sealed
    with pytest.raises(nacl.exceptions.CryptoError):
        sodium.crypto_box_seal_open(sealed, bytes(SITE_B.box.public_key), bytes(SITE_B.box))


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), bytes(31)], ids=["zero", "one", "short"])
def test_an_unusable_encryption_key_is_refused_by_name(key: bytes) -> None:
    weak = Participant(name="site-w", role=Role.SITE, verify_key=fixed("w"), box_key=key)
    with pytest.raises(Untrusted, match="site-w") as refused:
        weak.wrap(b"secret")
    assert refused.value.reason == "bad_key"
