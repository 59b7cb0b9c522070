"""Record ciphers: libsodium's, from one buffer of the caller's into another.

The only module that calls libsodium below PyNaCl's own functions, because those make a new `bytes` of every record: two
thirds of a version's time were page faults for them (decision 075). C checks no lengths, so every call here does.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from enum import IntEnum
from typing import ClassVar

# Also initialises libsodium. Without it the low-level library runs all the same, on portable code 2 to 40 times slower.
import nacl.bindings as sodium
import nacl.utils
from nacl._sodium import ffi, lib

from protocol.errors import Malformed, Tampered, WrongContext

Octets = bytes | bytearray | memoryview
"""Bytes that are read; what is written into is a `memoryview` that can be written."""
HEADERS = (sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES, 25)
"""Bytes a stream header may have: libsodium's own, or a suite's number and 24 random ones."""
_RANDOM = 24
_FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_AEGIS_PURPOSE = b"fledge/v2/aegis-256\0"


class Suite(IntEnum):
    """How the records of a blob are encrypted."""

    XCHACHA20 = 1
    """libsodium's secretstream (XChaCha20-Poly1305): fast on any processor."""
    AEGIS256 = 2
    """AEGIS-256 as a STREAM (Hoang et al. 2015): seven times faster where the processor has AES instructions."""

    @property
    def word(self) -> str:
        """Its name in a registry and on the command line."""
        return self.name.lower()

    @classmethod
    def named(cls, word: str) -> Suite:
        """The suite of this name.

        Raises:
            WrongContext: there is none in this version (`upgrade_needed`).
        """
        for suite in cls:
            if suite.word == word:
                return suite
        raise WrongContext(
            f"the federation encrypts with {word!r}, which this version of fledge cannot; upgrade it here",
            "upgrade_needed",
        )

    @property
    def overhead(self) -> int:
        """Ciphertext bytes that a record gains."""
        return _OVERHEAD[self]


_OVERHEAD = {
    Suite.XCHACHA20: sodium.crypto_secretstream_xchacha20poly1305_ABYTES,
    Suite.AEGIS256: sodium.crypto_aead_aegis256_ABYTES,
}


class RecordCipher(ABC):
    """Encrypts or decrypts the records of one blob; every method writes all of its output buffer, or raises."""

    suite: ClassVar[Suite]

    def __init__(self, associated: bytes) -> None:
        """`associated`: the hash of the message's core, which binds every record to it."""
        self._associated = associated
        self._sealed = 0

    def seal(self, index: int, last: bool, plain: Octets, sealed: memoryview) -> None:
        """Encrypt record `index` into `sealed`, which is `suite.overhead` bytes longer than `plain`.

        Raises:
            ValueError: a length is wrong, the buffers overlap, or a record of this index was encrypted before.
        """
        if size_of(sealed) != size_of(plain) + self.suite.overhead:
            raise ValueError(f"{size_of(plain)} bytes do not encrypt into {size_of(sealed)}")
        _check_apart(plain, sealed)
        if index < self._sealed:  # the same nonce for two texts would tell both
            raise ValueError(f"record {index} was encrypted before")
        self._sealed = index + 1
        self._seal(self._bound(index), index, last, plain, sealed)

    def open(self, index: int, last: bool, sealed: Octets, plain: memoryview) -> None:
        """Decrypt record `index` into `plain`, which is `suite.overhead` bytes shorter than `sealed`.

        Raises:
            Tampered: it is not that record, or the stream's end in the wrong place; `plain` then holds nothing of it.
            ValueError: a length is wrong, or the buffers overlap.
        """
        if size_of(sealed) != size_of(plain) + self.suite.overhead:
            raise ValueError(f"{size_of(sealed)} bytes do not decrypt into {size_of(plain)}")
        _check_apart(sealed, plain)
        self._open(self._bound(index), index, last, sealed, plain)

    def _bound(self, index: int) -> bytes:
        return self._associated + index.to_bytes(8, "big")

    @abstractmethod
    def _seal(self, associated: bytes, index: int, last: bool, plain: Octets, sealed: memoryview) -> None: ...

    @abstractmethod
    def _open(self, associated: bytes, index: int, last: bool, sealed: Octets, plain: memoryview) -> None: ...


class _XChaCha20(RecordCipher):
    """Records strictly in order, and in one direction: the state moves with each."""

    suite = Suite.XCHACHA20

    def __init__(self, associated: bytes, state: sodium.crypto_secretstream_xchacha20poly1305_state) -> None:
        super().__init__(associated)
        self._state = state
        self._tag = ffi.new("unsigned char *")

    def _seal(self, associated: bytes, index: int, last: bool, plain: Octets, sealed: memoryview) -> None:
        lib.crypto_secretstream_xchacha20poly1305_push(
            self._state.statebuf,
            *(_writable(sealed), ffi.NULL),
            *(_readable(plain), size_of(plain)),
            *(associated, len(associated)),
            _FINAL if last else _MESSAGE,
        )

    def _open(self, associated: bytes, index: int, last: bool, sealed: Octets, plain: memoryview) -> None:
        failed = lib.crypto_secretstream_xchacha20poly1305_pull(
            self._state.statebuf,
            *(_writable(plain), ffi.NULL, self._tag),
            *(_readable(sealed), size_of(sealed)),
            *(associated, len(associated)),
        )
        if failed:
            raise Tampered(f"record {index} does not decrypt")
        if self._tag[0] != (_FINAL if last else _MESSAGE):
            plain.cast("B")[:] = bytes(plain.nbytes)
            raise Tampered(f"record {index} ends the stream in the wrong place", "truncated")


class _Aegis256(RecordCipher):
    """Every record by itself, under the nonce `24 random bytes | u32 index | u32 last`."""

    suite = Suite.AEGIS256

    def __init__(self, associated: bytes, random: bytes, secret: bytes) -> None:
        super().__init__(associated)
        self._random = random
        # Not the content key itself: the message's body is encrypted with that, by another algorithm.
        self._key = hmac.digest(secret, _AEGIS_PURPOSE + associated, "sha256")

    def _nonce(self, index: int, last: bool) -> bytes:
        return self._random + index.to_bytes(4, "big") + int(last).to_bytes(4, "big")

    def _seal(self, associated: bytes, index: int, last: bool, plain: Octets, sealed: memoryview) -> None:
        lib.crypto_aead_aegis256_encrypt(
            *(_writable(sealed), ffi.NULL),
            *(_readable(plain), size_of(plain)),
            *(associated, len(associated)),
            *(ffi.NULL, self._nonce(index, last), self._key),
        )

    def _open(self, associated: bytes, index: int, last: bool, sealed: Octets, plain: memoryview) -> None:
        failed = lib.crypto_aead_aegis256_decrypt(
            *(_writable(plain), ffi.NULL, ffi.NULL),
            *(_readable(sealed), size_of(sealed)),
            *(associated, len(associated)),
            *(self._nonce(index, last), self._key),
        )
        if failed:
            raise Tampered(f"record {index} does not decrypt")


class NewStream:
    """A stream that is about to be written: first its header, which the core holds, then its cipher, bound to that."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret
        self._begun = False
        if suite is Suite.XCHACHA20:
            self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
            self.header = sodium.crypto_secretstream_xchacha20poly1305_init_push(self._state, secret)
        else:
            self.header = bytes([suite]) + nacl.utils.random(_RANDOM)

    def cipher(self, associated: bytes) -> RecordCipher:
        """The one cipher that seals the stream's records.

        Raises:
            ValueError: it was given before; two ciphers would use the same nonces for different texts.
        """
        if self._begun:
            raise ValueError("a stream is written once")
        self._begun = True
        if self._suite is Suite.XCHACHA20:
            return _XChaCha20(associated, self._state)
        return _Aegis256(associated, self.header[1:], self._secret)


def aes_instructions() -> bool:
    """Whether libsodium finds the AES instructions of this processor, without which AEGIS-256 runs on portable code."""
    # PyNaCl shows none of libsodium's own questions; its AES-GCM exists only with the instructions that AEGIS needs.
    return bool(lib.crypto_aead_aes256gcm_is_available())


def suite_of(header: bytes) -> Suite:
    """The suite that a stream header names; the first one's has no room for a name, and is told by its length.

    Raises:
        Malformed: no stream header.
        WrongContext: a suite that this version does not know (`upgrade_needed`).
    """
    if len(header) == _RANDOM:
        return Suite.XCHACHA20
    if len(header) != 1 + _RANDOM or header[0] == Suite.XCHACHA20:
        raise Malformed("the blob's stream header has the wrong size")
    try:
        return Suite(header[0])
    except ValueError:
        raise WrongContext(f"the blob is encrypted with the unknown suite {header[0]}", "upgrade_needed") from None


def opening(header: bytes, secret: bytes, associated: bytes) -> RecordCipher:
    """The cipher that opens the records of a written stream."""
    if suite_of(header) is Suite.AEGIS256:
        return _Aegis256(associated, header[1:], secret)
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, header, secret)
    return _XChaCha20(associated, state)


def size_of(data: Octets) -> int:
    """Bytes, also of a view whose elements are larger."""
    return data.nbytes if isinstance(data, memoryview) else len(data)


def _check_apart(read: Octets, written: memoryview) -> None:
    """Refuse a buffer that cannot be written, or holds some of what is read."""
    start, target = (int(ffi.cast("uintptr_t", each)) for each in (_readable(read), _writable(written)))
    if start < target + size_of(written) and target < start + size_of(read):
        raise ValueError("a record and what it becomes overlap in memory")


def _readable(data: Octets) -> object:
    return ffi.from_buffer(data)


def _writable(data: memoryview) -> object:
    return ffi.from_buffer("unsigned char[]", data, require_writable=True)
