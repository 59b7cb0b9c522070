"""Reading what reaches a site: heads, versions, registries, specifications, receipts. Pure functions over bytes.

Each one verifies before it parses and raises a `WireError` whose `reason` is safe to log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from broker.transport.base import Unacked
from protocol import limits
from protocol.blob import Manifest
from protocol.envelope import ContentKey, Verified, body, unlock, verify
from protocol.errors import Malformed, TooLarge, WrongContext
from protocol.keys import Identity, Participant, Role
from protocol.messages import Head, Kind, Receipt, Version
from protocol.registry import Registry, open_registry
from worker.domain.events import HeadSeen, ReceiptSeen, RegistrySeen, VersionSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A version record opened for training: what to fetch and how to decrypt it."""

    run: str
    version: int
    spec: bytes
    """Digest of the model specification."""
    says: Version
    manifest: Manifest
    key: ContentKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRecord:
    """A specification record opened: its blob is the specification's bytes."""

    spec: bytes
    manifest: Manifest
    key: ContentKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRecord:
    """A code record opened: its blob is a zip archive."""

    manifest: Manifest
    key: ContentKey


class NotForUs(WrongContext):
    """A genuine version record that is sealed for others."""

    reason = "not_for_us"

    def __init__(self, run: str, version: int, site: str) -> None:
        super().__init__(f"version {version} of run {run} is not sealed for {site}")
        self.run = run
        self.version = version


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose eyes these are: the site's identity, its federation and the registry in force."""

    identity: Identity
    federation: str
    registry: Registry

    @property
    def aggregators(self) -> tuple[Participant, ...]:
        """Whom updates and evaluations are sealed for."""
        return self.registry.members(Role.AGGREGATOR)

    def announcement(self, raw: bytes, delivery: Unacked, wall: float) -> HeadSeen | VersionSeen:
        """What came on the announcement queue.

        Raises:
            WireError: not a head or version record of this federation for this site.
        """
        verified = verify(raw, self.registry, federation=self.federation, kinds=(Kind.HEAD, Kind.VERSION))
        if verified.kind == Kind.HEAD:
            return HeadSeen(delivery=delivery, head=body(verified, Head), wall=wall)
        return self._version_seen(verified, delivery)

    def head(self, raw: bytes, wall: float) -> HeadSeen:
        """A head from the store."""
        return HeadSeen(delivery=None, head=body(self._stored(raw, Kind.HEAD), Head), wall=wall)

    def version(self, raw: bytes, run: str, version: int) -> VersionSeen:
        """A version record from the store; it has to be the one that the head names."""
        verified = self._stored(raw, Kind.VERSION)
        if (verified.core.run, verified.core.version) != (run, version):
            raise WrongContext(f"the record is of {verified.core.run} version {verified.core.version}")
        return self._version_seen(verified, None)

    def model(self, raw: bytes) -> ModelRecord:
        """A noted version record, opened for training."""
        verified = self._stored(raw, Kind.VERSION)
        key = unlock(verified, self.identity)
        return ModelRecord(
            run=verified.core.run,
            version=verified.core.version,
            spec=verified.core.spec,
            says=body(verified, Version, key),
            manifest=_manifest(verified),
            key=key,
        )

    def spec(self, raw: bytes) -> SpecRecord:
        """A specification record from the store."""
        verified = self._stored(raw, Kind.SPEC)
        return SpecRecord(spec=verified.core.spec, manifest=_manifest(verified), key=unlock(verified, self.identity))

    def code(self, raw: bytes, run: str) -> CodeRecord:
        """A code record from the store; only an operator's order says whether its code may be kept."""
        verified = self._stored(raw, Kind.CODE)
        if verified.core.run != run:
            raise WrongContext(f"the code record is of run {verified.core.run}, not of {run}")
        manifest = _manifest(verified)
        if manifest.length > limits.CODE:
            raise TooLarge(f"code of {manifest.length} bytes; at most {limits.CODE} are allowed")
        return CodeRecord(manifest=manifest, key=unlock(verified, self.identity))

    def receipt(self, raw: bytes, delivery: Unacked) -> ReceiptSeen:
        """What came on the site's own queue."""
        verified = verify(raw, self.registry, federation=self.federation, kinds=(Kind.RECEIPT,))
        key = unlock(verified, self.identity) if verified.recipients else None
        receipt = body(verified, Receipt, key)
        return ReceiptSeen(delivery=delivery, receipt=receipt, version=verified.core.version, raw=raw)

    def _stored(self, raw: bytes, kind: Kind) -> Verified:
        return verify(raw, self.registry, federation=self.federation, kinds=(kind,), limit=limits.STORED_RECORD)

    def _version_seen(self, verified: Verified, delivery: Unacked | None) -> VersionSeen:
        if self.identity.box_kid not in verified.recipients:
            raise NotForUs(verified.core.run, verified.core.version, self.identity.name)
        says = body(verified, Version, unlock(verified, self.identity))
        _manifest(verified)
        return VersionSeen(
            delivery=delivery,
            run=verified.core.run,
            version=verified.core.version,
            record=verified.raw,
            digest=hashlib.sha256(verified.raw).digest(),
            updates_per_base=says.updates_per_base,
            evaluate=says.evaluate,
            bundle=says.bundle or b"",
        )


def read_registry(raw: bytes, root: bytes, federation: str) -> RegistrySeen:
    """A registry record, which only the root (its verify key, 32 bytes) can have signed.

    Raises:
        WireError: it has not, or says something else.
    """
    return RegistrySeen(registry=open_registry(raw, root, federation), digest=hashlib.sha256(raw).digest(), record=raw)


def _manifest(verified: Verified) -> Manifest:
    if verified.manifest is None:
        raise Malformed(f"a {verified.kind.name.lower()} record without a blob")
    return verified.manifest
