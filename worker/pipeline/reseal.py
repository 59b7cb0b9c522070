"""The content key of an update in the site's own keeping, and signing an update again under another key epoch.

Ciphertext is bound to the message's core, so another sequence number means encrypting again. Nothing decrypted is ever
written down: the old chunks are read, opened, and sealed anew record by record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nacl.exceptions
import nacl.public

from protocol.blob import Chunk, ChunkSink, Manifest
from protocol.envelope import ContentKey, Sealer, raw_body, verify
from protocol.errors import StateError, Untrusted
from protocol.keys import Identity, Participant
from protocol.messages import Kind
from worker.domain.state import Sealed, UpdateRow
from worker.intake import Reader

_SECRET = 32


class _SelfTrust:
    """Trusts one identity: for reading back what it has itself signed."""

    def __init__(self, identity: Identity) -> None:
        self._own = identity.public

    def signer(self, kid: bytes) -> Participant:
        if kid != self._own.kid:
            raise Untrusted(f"{kid.hex()[:8]} is not this site's signing key")
        return self._own


def wrap(key: ContentKey, identity: Identity) -> bytes:
    """The content key sealed for the site's own box key, fit for the journal."""
    box = nacl.public.SealedBox(identity.box.public_key)
    return bytes(box.encrypt(key.secret + key.associated))


def unwrap(wrapped: bytes, identity: Identity) -> ContentKey:
    """What `wrap` sealed.

    Raises:
        StateError: the site's key has changed since, or the journal is damaged.
    """
    try:
        opened = nacl.public.SealedBox(identity.box).decrypt(wrapped)
    except (nacl.exceptions.CryptoError, ValueError) as error:
        raise StateError(
            "an update in the journal cannot be opened with this site's key; was the key replaced?"
        ) from error
    return ContentKey(opened[:_SECRET], opened[_SECRET:])


def reseal(
    row: UpdateRow,
    sealed: Sealed,
    reader: Reader,
    number: tuple[int, int],
    *,
    load: Callable[[bytes], Chunk],
    sink: ChunkSink,
) -> Sealed:
    """The same update under another epoch and sequence (`number`); `load` opens old chunks, `sink` takes new ones.

    Raises:
        StateError, Tampered: the old chunks are gone or damaged, or the site's key was replaced.
    """
    identity, (epoch, sequence) = reader.identity, number
    old = verify(sealed.envelope, _SelfTrust(identity), federation=reader.federation, kinds=(Kind.UPDATE,))
    key = unwrap(sealed.key, identity)
    if old.manifest is None:
        raise StateError(f"update {row.id.hex()[:8]} in the journal has no tensors")
    sealer = Sealer(
        identity,
        Kind.UPDATE,
        federation=reader.federation,
        message_id=old.core.id,
        run=old.core.run,
        epoch=epoch,
        sequence=sequence,
        version=old.core.version,
        spec=old.core.spec,
        length=old.core.length,
        suite=reader.registry.suite,
    )
    writer = sealer.writer(sink)
    for record in key.reader(old.manifest).read(load(name) for name in old.manifest.chunks):
        writer.write(record)
    return finish(sealer, raw_body(old, key), reader.aggregators, writer.finish(), identity)


def finish(
    sealer: Sealer, body: bytes, recipients: Sequence[Participant], manifest: Manifest, identity: Identity
) -> Sealed:
    """Sign an update and keep its content key in a way that only this site can open."""
    return Sealed(
        envelope=sealer.finish(body, recipients, manifest), chunks=manifest.chunks, key=wrap(sealer.key, identity)
    )
