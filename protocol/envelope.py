"""Envelopes: what is signed, for whom it is encrypted, and the order in which everything is checked.

    FLDG1 | kind u8 | sender kid 16 B | u32 length | header | 64 B Ed25519 signature

The signature covers everything before it under the purpose `fledge/v1/envelope`. The header holds `core` (what is known
before the first byte of a blob) and, outside it, recipients, wrapped keys, chunk hashes, the plaintext hash and one
inline body. The hash of the core is the associated data of every record and stands inside every wrapped key:

- who re-encrypts another's text for a third party cannot keep the sender's signature (recipients are signed);
- who strips a signature and signs the same ciphertext cannot keep it readable (the sender's kid is in the core).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, Required, TypedDict, TypeVar, Unpack

import nacl.bindings as sodium
import nacl.exceptions
import nacl.signing
import nacl.utils
from pydantic import Field

from protocol import limits
from protocol.blob import BlobReader, BlobWriter, ChunkSink, Manifest
from protocol.cipher import NewStream, Suite
from protocol.codec import EXACT, Bytes, Count, Digest, Id, Word, decode, encode, many, unpack
from protocol.errors import Malformed, Tampered, TooLarge, Untrusted, WrongContext
from protocol.keys import Identity, Participant
from protocol.messages import SIGNER, Kind, hashes_plaintext

MAGIC = b"FLDG1"
PURPOSE = b"fledge/v1/envelope\0"
CORE_PURPOSE = b"fledge/v1/core\0"
COMMIT_PURPOSE = b"fledge/v1/commitment\0"
BODY_LABEL = b"body"
_FRAME = struct.Struct(">5sB16sI")
_SIGNATURE = 64
_WRAP = 32 + 32 + sodium.crypto_box_SEALBYTES
NO_RUN = "-"
B = TypeVar("B")


class Trust(Protocol):
    """Who signs with which key (the registry, or the root's key alone)."""

    def signer(self, kid: bytes) -> Participant:
        """The participant, or `Untrusted`."""


_Version = Annotated[int, Field(strict=True, ge=1, le=1)]
_Empty = Annotated[bytes, Field(strict=True, max_length=0)]
_Stream = Annotated[bytes, Field(strict=True, min_length=24, max_length=25)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What is fixed before the first byte is encrypted."""

    __pydantic_config__ = EXACT
    v: _Version
    kind: Count
    federation: Word
    run: Word
    """`-` where the message is not about a run."""
    sender: Id
    epoch: Count
    sequence: Count
    id: Id
    version: Count
    """The base version of an update, the version itself of a version record; else 0."""
    spec: Digest | _Empty
    """Digest of the model specification; empty where there is no model."""
    length: Count
    """Plaintext bytes of the blob; 0 without one."""
    record: Count
    stream: _Stream | _Empty
    commitment: Digest | _Empty
    """SHA-256 over the content key (the cipher alone does not commit to its key); empty when nothing is encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    __pydantic_config__ = EXACT
    core: Bytes
    to: Annotated[tuple[Id, ...], many(limits.RECIPIENTS)]
    wraps: Annotated[
        tuple[Annotated[bytes, Field(strict=True, min_length=_WRAP, max_length=_WRAP)], ...], many(limits.RECIPIENTS)
    ]
    chunks: Annotated[tuple[Digest, ...], many(limits.CHUNKS)]
    digest: Digest | _Empty
    body: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """An envelope whose signature, sender, frame and context hold; its body may still be sealed."""

    kind: Kind
    sender: Participant
    core: Core
    manifest: Manifest | None
    raw: bytes
    _header: _Header

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """Encryption key ids it was sealed for; empty when it is in the clear."""
        return self._header.to


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The key of one message's body and blob, and the core hash that binds it; never in logs or files."""

    secret: bytes
    associated: bytes

    def __repr__(self) -> str:
        return "ContentKey(…)"

    def reader(self, manifest: Manifest, *, digest: bool | None = None, proven: bool = False) -> BlobReader:
        """A reader of the message's blob; arguments as `BlobReader` takes them."""
        return BlobReader(self.secret, self.associated, manifest, digest=digest, proven=proven)


class Sealer:
    """Makes one message: fix the core, stream the blob if there is one, then sign.

    With `length` 0 there is no blob. Without recipients the body stays in the clear and only the signature protects it
    (heads and registries, which every member must be able to read).
    """

    def __init__(
        self,
        signer: Identity,
        kind: Kind,
        *,
        federation: str,
        message_id: bytes,
        run: str = NO_RUN,
        epoch: int = 0,
        sequence: int = 0,
        version: int = 0,
        spec: bytes = b"",
        length: int = 0,
        clear: bool = False,
        suite: Suite = Suite.XCHACHA20,
    ) -> None:
        """Fix the core; a new content key comes from the operating system's randomness.

        Raises:
            Malformed: a blob in the clear.
        """
        if clear and length:
            raise Malformed("a blob is never in the clear")
        self._signer = signer
        self._kind = kind
        self._secret = b"" if clear else nacl.utils.random(32)
        self._stream = NewStream(suite, self._secret) if length else None
        self.core = Core(
            v=1,
            kind=int(kind),
            federation=federation,
            run=run,
            sender=signer.kid,
            epoch=epoch,
            sequence=sequence,
            id=message_id,
            version=version,
            spec=spec,
            length=length,
            record=limits.RECORD if length else 0,
            stream=self._stream.header if self._stream else b"",
            commitment=b"" if clear else _commitment(self._secret),
        )
        self._core = encode(self.core)
        self._associated = _core_hash(self._core)

    @property
    def key(self) -> ContentKey:
        """The content key, for reading back what is being written."""
        return ContentKey(self._secret, self._associated)

    def writer(self, sink: ChunkSink) -> BlobWriter:
        """The one writer of the message's blob.

        Raises:
            Malformed: it has none.
            ValueError: it was given before: nothing is ever encrypted twice under one key.
        """
        if self._stream is None:
            raise Malformed(f"a {self._kind.name} message without a blob has no writer")
        cipher, length = self._stream.cipher(self._associated), self.core.length
        digest = hashes_plaintext(self._kind, cipher.suite)
        return BlobWriter(cipher, self._stream.header, length, sink, digest=digest)

    def finish(self, body: bytes, recipients: Sequence[Participant], manifest: Manifest | None = None) -> bytes:
        """The signed envelope.

        Raises:
            TooLarge: the body, the number of recipients or the whole is over its limit.
            Malformed: recipients without a key, a key without recipients, or a blob that was not written.
            Untrusted: a recipient's encryption key cannot be used.
        """
        if bool(recipients) != bool(self._secret) or bool(manifest) != bool(self.core.length):
            raise Malformed(f"a {self._kind.name} message needs recipients if it has secrets, and a manifest if a blob")
        return _signed(
            self._signer,
            self._kind,
            _Header(
                core=self._core,
                to=tuple(p.box_kid for p in recipients),
                wraps=_wraps(self.key, recipients),
                chunks=manifest.chunks if manifest else (),
                digest=manifest.digest if manifest else b"",
                body=_seal_body(self.key, body) if self._secret else body,
            ),
        )


class Context(TypedDict, total=False):
    """What a message without a blob is about, as in `Core`."""

    federation: Required[str]
    message_id: Required[bytes]
    run: str
    epoch: int
    sequence: int
    version: int
    spec: bytes


def seal(
    signer: Identity, kind: Kind, body: object, recipients: Sequence[Participant], **context: Unpack[Context]
) -> bytes:
    """A message without a blob, in one call; a body of bytes is taken as it is. No recipients: signed, in the clear."""
    sealer = Sealer(signer, kind, clear=not recipients, **context)
    return sealer.finish(body if isinstance(body, bytes) else encode(body), recipients)


def verify(
    raw: bytes, trust: Trust, *, federation: str, kinds: Collection[Kind], limit: int = limits.MESSAGE
) -> Verified:
    """Check size, frame, signature, then (only then) parse, and check sender and context.

    `limit` is the size allowed here: a message on the broker, or a stored record.

    Raises:
        TooLarge, Malformed, Untrusted, WrongContext, Tampered: with the reason for a receipt or dead letter.
    """
    if len(raw) > limit:
        raise TooLarge(f"a message of {len(raw)} bytes; at most {limit} are allowed")
    if len(raw) < _FRAME.size + _SIGNATURE or raw[:5] != MAGIC:
        raise Malformed("not a fledge envelope", "bad_frame")
    _, kind_byte, kid, length = _FRAME.unpack_from(raw)
    if len(raw) != _FRAME.size + length + _SIGNATURE:
        raise Malformed("the frame's length does not match", "bad_frame")
    sender = trust.signer(kid)
    try:
        nacl.signing.VerifyKey(sender.verify_key).verify(PURPOSE + raw[:-_SIGNATURE], raw[-_SIGNATURE:])
    except nacl.exceptions.CryptoError:
        raise Untrusted(f"the signature of {sender.name} does not verify", "bad_signature") from None
    header, core = _opened(raw[_FRAME.size : -_SIGNATURE], limit)
    if core.kind != kind_byte or core.sender != kid:
        raise WrongContext("the frame names another kind or sender than the core")
    return _checked(raw, sender, header, core, federation, kinds)


def kind_of(raw: bytes) -> int:
    """The kind a frame claims, to choose who reads it; nothing is known of it before `verify`. 0: not a frame."""
    return raw[5] if len(raw) > _FRAME.size and raw[:5] == MAGIC else 0


def _opened(packed: bytes, limit: int) -> tuple[_Header, Core]:
    try:
        header = decode(_Header, packed, limit)
    except Malformed:
        # A newer version may have other fields here; if its core says so, that is the reason to give.
        plain = unpack(packed, limit)
        if isinstance(plain, dict) and isinstance(plain.get("core"), bytes):
            decode(Core, plain["core"], limit)
        raise
    return header, decode(Core, header.core, limit)


def _checked(
    raw: bytes, sender: Participant, header: _Header, core: Core, federation: str, kinds: Collection[Kind]
) -> Verified:
    if core.federation != federation:
        raise WrongContext("the message belongs to another federation than the one configured", "wrong_federation")
    try:
        kind = Kind(core.kind)
    except ValueError:
        raise WrongContext(f"unknown kind {core.kind}; a newer version may know it", "upgrade_needed") from None
    if kind not in kinds:
        raise WrongContext(f"a message of kind {kind.name} does not belong here", "wrong_kind")
    if SIGNER[kind] != sender.role:
        raise Untrusted(f"{sender.name} may not sign {kind.name}", "wrong_role")
    if len(header.to) != len(header.wraps) or bool(header.to) != bool(core.commitment):
        raise Malformed("recipients, wrapped keys and key commitment do not match")
    if header.to and len(header.body) > limits.BODY + limits.OVERHEAD + 24:
        raise TooLarge("the inline body is over its limit")
    return Verified(kind=kind, sender=sender, core=core, manifest=_manifest(core, header), raw=raw, _header=header)


def _manifest(core: Core, header: _Header) -> Manifest | None:
    if not core.length:
        if core.record or core.stream or header.chunks or header.digest:
            raise Malformed("parts of a blob where there is none")
        return None
    if core.record != limits.RECORD or not core.commitment:
        raise Malformed("the blob's record size is wrong, or there is no key for it")
    manifest = Manifest(length=core.length, stream=core.stream, chunks=header.chunks, digest=header.digest)
    manifest.check()
    if bool(header.digest) != hashes_plaintext(core.kind, manifest.suite):
        raise Malformed("the hash of the blob's plaintext is missing, or there is one where none belongs")
    return manifest


def unlock(verified: Verified, identity: Identity) -> ContentKey:
    """The content key, if the message is sealed for this identity.

    Raises:
        WrongContext: it is not.
        Tampered: the wrapped key belongs to another message.
    """
    header = verified._header
    if identity.box_kid not in header.to:
        raise WrongContext(f"the message is not sealed for {identity.name}", "not_for_us")
    wrap = header.wraps[header.to.index(identity.box_kid)]
    try:
        opened = sodium.crypto_box_seal_open(wrap, bytes(identity.box.public_key), bytes(identity.box))
    except nacl.exceptions.CryptoError:
        raise Tampered("the wrapped key does not open") from None
    key = ContentKey(opened[:32], opened[32:])
    if not hmac.compare_digest(key.associated, _core_hash(header.core)):
        raise Tampered("the wrapped key belongs to another message", "wrong_wrap")
    if not hmac.compare_digest(_commitment(key.secret), verified.core.commitment):
        raise Tampered("the content key is not the one that was committed to")
    return key


def disclosed(verified: Verified, secret: bytes) -> ContentKey:
    """The content key that a recipient passed on; it opens this message alone.

    Raises:
        Tampered: it is not the key that the message was sealed with.
    """
    if not hmac.compare_digest(_commitment(secret), verified.core.commitment):
        raise Tampered("the content key is not the one that was committed to")
    return ContentKey(secret, _core_hash(verified._header.core))


def body(verified: Verified, kind: type[B], key: ContentKey | None = None) -> B:
    """The decoded body; `key` (from `unlock`) is needed exactly when the message has recipients.

    Raises:
        Tampered: the body does not decrypt.
        Malformed: it does not say what its kind has to say.
    """
    raw = raw_body(verified, key)
    return decode(kind, raw, limits.STORED_RECORD)


def raw_body(verified: Verified, key: ContentKey | None = None) -> bytes:
    """The body's bytes, for the kinds that carry a registry or specification of their own."""
    sealed = verified._header.body
    if not verified.recipients:
        return sealed
    if key is None:
        raise WrongContext("the body is sealed and no key was given", "not_for_us")
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    try:
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, sealed[:24], key.secret)
        plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, sealed[24:], key.associated + BODY_LABEL)
    except nacl.exceptions.CryptoError:
        raise Tampered("the body does not decrypt") from None
    if tag != sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL:
        raise Tampered("the body is not complete", "truncated")
    return bytes(plain)


def reissue(verified: Verified, key: ContentKey, signer: Identity, new_body: bytes, to: Sequence[Participant]) -> bytes:
    """The same core and ciphertext, wrapped for other recipients and signed again by the same sender.

    Raises:
        Untrusted: `signer` is not who signed the message, or a recipient's encryption key cannot be used.
        TooLarge: the body, the number of recipients or the whole is over its limit.
        Malformed: it has no recipient.
    """
    if signer.kid != verified.core.sender:
        raise Untrusted("only the sender can wrap a message for new recipients")
    if not to:
        raise Malformed("a message cannot be wrapped for nobody")
    old = verified._header
    return _signed(
        signer,
        verified.kind,
        _Header(
            core=old.core,
            to=tuple(p.box_kid for p in to),
            wraps=_wraps(key, to),
            chunks=old.chunks,
            digest=old.digest,
            body=_seal_body(key, new_body),
        ),
    )


def _signed(signer: Identity, kind: Kind, header: _Header) -> bytes:
    if len(header.to) > limits.RECIPIENTS:
        raise TooLarge(f"{len(header.to)} recipients; at most {limits.RECIPIENTS} are allowed")
    packed = encode(header)
    frame = _FRAME.pack(MAGIC, int(kind), signer.kid, len(packed)) + packed
    if len(frame) + _SIGNATURE > limits.STORED_RECORD:
        raise TooLarge(f"a {kind.name} record of {len(frame)} bytes; at most {limits.STORED_RECORD} are allowed")
    return frame + signer.sign.sign(PURPOSE + frame).signature


def _wraps(key: ContentKey, recipients: Sequence[Participant]) -> tuple[bytes, ...]:
    return tuple(p.wrap(key.secret + key.associated) for p in recipients)


def _seal_body(key: ContentKey, plain: bytes) -> bytes:
    if len(plain) > limits.BODY:
        raise TooLarge(f"an inline body of {len(plain)} bytes; at most {limits.BODY} are allowed")
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    start: bytes = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, key.secret)
    sealed: bytes = sodium.crypto_secretstream_xchacha20poly1305_push(
        state, plain, key.associated + BODY_LABEL, sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
    )
    return start + sealed


def _core_hash(core: bytes) -> bytes:
    return hashlib.sha256(CORE_PURPOSE + core).digest()


def _commitment(secret: bytes) -> bytes:
    return hashlib.sha256(COMMIT_PURPOSE + secret).digest()
