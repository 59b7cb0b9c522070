"""Who belongs to a federation: a versioned list of keys, signed by the offline root."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

from pydantic import Field

from protocol import limits
from protocol.cipher import Suite
from protocol.codec import EXACT, TEXT, Count, Word, decode, encode, many, unpack
from protocol.envelope import raw_body, seal, verify
from protocol.errors import ConfigError, Malformed, Untrusted
from protocol.keys import Identity, Participant, Role, key_id
from protocol.messages import Kind
from protocol.rights import NO_POLICY, Person, Policy, Rights

NO_ORGANISATION = "-"
PublicKey = Annotated[bytes, Field(strict=True, min_length=32, max_length=32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One participant's keys and the registry versions in which they hold."""

    __pydantic_config__ = EXACT
    name: Word
    role: Annotated[Role, TEXT]
    verify_key: PublicKey
    box_key: PublicKey
    since: Count
    revoked: Count | None
    """The registry version that revoked the keys; None while they hold."""
    organisation: Word = NO_ORGANISATION
    roles: Annotated[tuple[Word, ...], many(16)] = ()
    """What an operator is, in the words of the policy."""

    @property
    def participant(self) -> Participant:
        """The entry's public keys under its name."""
        return Participant(name=self.name, role=self.role, verify_key=self.verify_key, box_key=self.box_key)


@dataclass(frozen=True, kw_only=True)  # without slots: it keeps its index, which every message asks
class Registry:
    """The members of a federation; the versions of this list only rise and entries are never removed."""

    __pydantic_config__ = EXACT
    version: Count
    entries: Annotated[tuple[Entry, ...], many(4 * limits.RECIPIENTS)]
    policy: Policy = NO_POLICY
    """What operators may do where; without one no operator may more than the defaults say."""
    cipher: Word = Suite.XCHACHA20.word
    """The suite that members encrypt their blobs with; all of them read every suite they know."""

    @cached_property
    def suite(self) -> Suite:
        """What `cipher` names.

        Raises:
            WrongContext: a suite that this version does not know (`upgrade_needed`).
        """
        return Suite.named(self.cipher)

    @cached_property
    def rights(self) -> Rights:
        """The policy, ready to be asked about the operators and sites whose keys hold."""
        held = [entry for entry in self.entries if entry.revoked is None]
        return Rights(
            self.policy,
            {e.name: Person(organisation=e.organisation, roles=e.roles) for e in held if e.role == Role.OPERATOR},
            {e.name: e.organisation for e in held if e.role in (Role.SITE, Role.AGGREGATOR)},
        )

    def signer(self, kid: bytes) -> Participant:
        """Who signs with this key.

        Raises:
            Untrusted: no participant does, or the key is revoked.
        """
        entry = self._by_kid.get(kid)
        if entry is None:
            raise Untrusted(f"no participant has the key {kid.hex()[:8]}")
        if entry.revoked is not None:
            raise Untrusted(f"the key {kid.hex()[:8]} of {entry.name} is revoked", "revoked")
        return entry.participant

    def members(self, role: Role) -> tuple[Participant, ...]:
        """Everyone with this role whose keys hold, in the list's order."""
        return self._by_role.get(role, ())

    @cached_property
    def _by_kid(self) -> dict[bytes, Entry]:
        # Should a key stand twice, its first entry counts.
        return {key_id(entry.verify_key): entry for entry in reversed(self.entries)}

    @cached_property
    def _by_role(self) -> dict[Role, tuple[Participant, ...]]:
        valid = [entry.participant for entry in self.entries if entry.revoked is None]
        return {role: tuple(member for member in valid if member.role == role) for role in Role}

    def member(self, name: str) -> Participant:
        """The participant of this name.

        Raises:
            Untrusted: there is none, or its keys are revoked.
        """
        for entry in self.entries:
            if entry.name == name and entry.revoked is None:
                return entry.participant
        raise Untrusted(f"{name} is not a member of registry version {self.version}", "revoked")

    def former(self, name: str) -> Participant:
        """Who holds or last held this name, also if revoked: for the last words to a site that was cut off.

        Raises:
            Untrusted: none ever did.
        """
        for entry in reversed(self.entries):
            if entry.name == name:
                return entry.participant
        raise Untrusted(f"{name} never was a member")

    def with_entry(
        self, participant: Participant, *, organisation: str = NO_ORGANISATION, roles: tuple[str, ...] = ()
    ) -> Registry:
        """The next version, with one more participant; an earlier entry of that name is revoked.

        Raises:
            ConfigError: one of the keys is or was a participant's already, or cannot be used.
        """
        if any(e.verify_key == participant.verify_key or e.box_key == participant.box_key for e in self.entries):
            raise ConfigError(f"a key of {participant.name} is in the registry already; entries never share keys")
        try:
            participant.wrap(b"")
        except Untrusted as error:
            raise ConfigError(f"{participant.name} cannot be added: {error}") from None
        number = self.version + 1
        kept = self.revoke(participant.name).entries
        new = Entry(
            name=participant.name,
            role=participant.role,
            verify_key=participant.verify_key,
            box_key=participant.box_key,
            since=number,
            revoked=None,
            organisation=organisation,
            roles=roles,
        )
        return replace(self, version=number, entries=(*kept, new))

    def revoke(self, name: str, *, version: int | None = None) -> Registry:
        """The next version (or the one given), without the keys of `name`."""
        number = self.version + 1 if version is None else version
        entries = tuple(
            replace(entry, revoked=number) if entry.name == name and entry.revoked is None else entry
            for entry in self.entries
        )
        return replace(self, version=number, entries=entries)

    def with_cipher(self, suite: Suite) -> Registry:
        """The next version, whose members encrypt their blobs with this suite."""
        return replace(self, version=self.version + 1, cipher=suite.word)


def sign_registry(registry: Registry, root: Identity, federation: str, message_id: bytes) -> bytes:
    """The root-signed record of a registry, in the clear."""
    body = encode(registry)
    said = unpack(body, limits.STORED_RECORD)
    if isinstance(said, dict) and registry.suite is Suite.XCHACHA20:
        del said["cipher"]  # as before there was a choice, so that older members read it
        body = encode(said)
    return seal(root, Kind.REGISTRY, body, (), federation=federation, message_id=message_id, sequence=registry.version)


def open_registry(raw: bytes, root: bytes, federation: str) -> Registry:
    """The registry a record holds, if the root of this federation signed it.

    Raises:
        WireError: it did not, or the record is not a registry.
    """
    verified = verify(raw, _Root(root), federation=federation, kinds={Kind.REGISTRY}, limit=limits.STORED_RECORD)
    registry = decode(Registry, raw_body(verified), limits.STORED_RECORD)
    names = [entry.name for entry in registry.entries if entry.revoked is None]
    _ = registry.suite  # refused here, before anybody wants to encrypt
    if registry.version != verified.core.sequence or len(set(names)) != len(names):
        raise Malformed("the registry's version is not its record's sequence, or a name stands for two members")
    return registry


class _Root:
    """Trust in one key: the federation's root."""

    def __init__(self, verify_key: bytes) -> None:
        self._root = Participant(name="root", role=Role.ROOT, verify_key=verify_key, box_key=verify_key)

    def signer(self, kid: bytes) -> Participant:
        if kid != self._root.kid:
            raise Untrusted("not signed by the federation's root: `root` in the configuration is that of another one")
        return self._root
