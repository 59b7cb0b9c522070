"""Keys and who holds them: an Identity owns secrets, a Participant is what others know of it.

Every participant makes its own Ed25519 signing key and X25519 encryption key. A key id is the first 16 bytes of the
SHA-256 of the public key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Annotated

import nacl.bindings as sodium
import nacl.exceptions
import nacl.public
import nacl.signing
from pydantic import Field

from protocol.codec import EXACT, Word, decode, encode
from protocol.errors import Malformed, Untrusted


class Role(StrEnum):
    """What a participant may sign."""

    ROOT = "root"
    AGGREGATOR = "aggregator"
    SITE = "site"
    OPERATOR = "operator"


def titled(role: Role, name: str) -> str:
    """Role and name for people: the aggregator's is both."""
    return name if name == role.value else f"{role.value} {name}"


@lru_cache(maxsize=16_384)  # a registry of 1,500 sites is searched 6 times faster
def key_id(public_key: bytes) -> bytes:
    """The 16-byte id of a public key."""
    return hashlib.sha256(public_key).digest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """The public half of an identity."""

    name: str
    role: Role
    verify_key: bytes
    box_key: bytes

    @property
    def kid(self) -> bytes:
        """Id of the signing key."""
        return key_id(self.verify_key)

    @property
    def box_kid(self) -> bytes:
        """Id of the encryption key."""
        return key_id(self.box_key)

    def wrap(self, secret: bytes) -> bytes:
        """`secret` in a sealed box that only this participant can open.

        Raises:
            Untrusted: the encryption key is not a usable X25519 key (`bad_key`).
        """
        try:
            return bytes(sodium.crypto_box_seal(secret, self.box_key))
        except nacl.exceptions.CryptoError:
            raise Untrusted(f"the encryption key of {self.name} is not usable; revoke it", "bad_key") from None


_Seed = Annotated[bytes, Field(strict=True, min_length=32, max_length=32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secrets:
    __pydantic_config__ = EXACT
    v: Annotated[int, Field(strict=True, ge=1, le=1)]
    name: Word
    role: Word
    sign: _Seed = field(repr=False)
    box: _Seed = field(repr=False)


class Identity:
    """A participant's own keys. Its repr never shows them; keep `to_bytes` in files of mode 0600 only."""

    __slots__ = ("box", "name", "role", "sign")

    def __init__(self, name: str, role: Role, sign: nacl.signing.SigningKey, box: nacl.public.PrivateKey) -> None:
        self.name = name
        self.role = role
        self.sign = sign
        self.box = box

    @classmethod
    def generate(cls, name: str, role: Role) -> Identity:
        """Fresh keys from the operating system's randomness."""
        return cls(name, role, nacl.signing.SigningKey.generate(), nacl.public.PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Identity:
        """Read what `to_bytes` wrote.

        Raises:
            Malformed: these are not the bytes of an identity.
        """
        secrets = decode(_Secrets, raw, 1024)
        try:
            role = Role(secrets.role)
        except ValueError:
            raise Malformed(f"key file of {secrets.name}: unknown role") from None
        return cls(secrets.name, role, nacl.signing.SigningKey(secrets.sign), nacl.public.PrivateKey(secrets.box))

    def to_bytes(self) -> bytes:
        """The secret keys, for a file that only their owner can read."""
        return encode(_Secrets(v=1, name=self.name, role=self.role.value, sign=bytes(self.sign), box=bytes(self.box)))

    @property
    def public(self) -> Participant:
        """What others may know."""
        return Participant(
            name=self.name, role=self.role, verify_key=bytes(self.sign.verify_key), box_key=bytes(self.box.public_key)
        )

    @property
    def kid(self) -> bytes:
        """Id of the signing key."""
        return key_id(bytes(self.sign.verify_key))

    @property
    def box_kid(self) -> bytes:
        """Id of the encryption key."""
        return key_id(bytes(self.box.public_key))

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.role.value}, kid={self.kid.hex()[:8]})"
