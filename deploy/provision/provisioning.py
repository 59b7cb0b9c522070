"""What a provisioner does: make kits for new members, answer requests, renew certificates, revoke.

No other member's kit changes when one joins or leaves: members learn of it from the root-signed registry, which the
hub publishes, and certificates are judged by the authority that every member has.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from broker.runtime.settings import nearest
from deploy.keyfiles import private_directory, replace_private
from deploy.provision import kit_files, pki
from deploy.provision.custody import (
    KITS,
    PASSWORDS,
    REGISTRY,
    RENEWED,
    SIGNING,
    STORE,
    Custody,
    CustodyState,
    new_credentials,
    open_custody,
)
from deploy.provision.enrolment import EnrolmentRequest, open_request
from deploy.provision.kit_files import AUTHORITY, CERTIFICATE, CREDENTIALS, KEYS, SERVERS, TLS_KEY
from deploy.provision.kits import random_code, write_kit
from deploy.provision.project import Project, WantedParticipant
from protocol.cipher import Suite
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.registry import Entry, Registry
from protocol.topology import AGGREGATOR

PASSWORD_GROUPS = 5
"""Five groups of five: 123 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A kit that was made."""

    name: str
    role: Role
    path: Path
    password: str = field(repr=False)
    """Shown once; it lies in `password_file` until somebody deletes that."""
    password_file: Path
    """Of mode 0600, as `fledge kit --password-file` takes it."""
    expires: datetime
    """When its certificate ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """Certificates to be put over a member's old ones; they hold no secret."""

    name: str
    folder: Path
    expires: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What a provisioner's work has come to."""

    registry: Path
    """The newest root-signed record, for the hub to publish."""
    version: int
    changed: bool
    """Whether this is a new version."""
    kits: tuple[Issued, ...] = ()
    renewed: tuple[Renewed, ...] = ()
    notes: tuple[str, ...] = ()
    """What the provisioner still has to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewKit:
    """A kit to be made."""

    wanted: WantedParticipant
    tls: bytes
    """The public key to certify, PEM."""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Private keys by file name; none if the participant made its own."""


def provision(project: Project, directory: Path, now: datetime) -> Provisioned:
    """Bring a federation to what its project says: every member's kit the first time, later only what is new.

    Raises:
        ConfigError: the folder is another federation's, or a participant changed its role.
    """
    with open_custody(directory, project, now) as custody:
        before = custody.state
        registry, fresh, notes = _joined(custody.registry(), project)
        if project.cipher not in (None, registry.cipher):
            registry = registry.with_cipher(Suite.named(project.cipher))
            notes += _ciphered(before, registry.suite)
        new_kits = []
        for wanted in fresh:
            registry, new_kit = _with_new_keys(registry, wanted)
            new_kits.append(new_kit)
        state = before.model_copy(update={"project": project})
        return _carry_out(custody, state, registry, new_kits, now, notes=notes + _moved(before, project))


def accept(directory: Path, request: bytes, code: str, now: datetime) -> Provisioned:
    """Answer a request for enrolment with a kit without private keys; the same request gets the same answer again.

    Raises:
        ConfigError: the request is not genuine, for another federation, or from no one whom the project expects.
    """
    with open_custody(directory, None, now) as custody:
        asked = open_request(request, code, custody.state.project.name)
        wanted = _expected(custody.state.project, asked)
        tls = pki.requested_key(asked.signing_request, asked.name)
        registry, state = custody.registry(), custody.state
        if (held := _held(registry, asked.name)) is None or held.participant != asked.participant:
            if any(entry.verify_key == asked.verify_key for entry in registry.entries):
                raise ConfigError(
                    f"these keys of {asked.name} hold no longer; have it run `fledge enrol` in a new folder"
                )
            registry = registry.with_entry(asked.participant, organisation=wanted.organisation, roles=wanted.roles)
            state = _without(state, asked.name)
        return _carry_out(custody, state, registry, [_NewKit(wanted=wanted, tls=tls)], now)


def reissue(directory: Path, name: str, now: datetime) -> Provisioned:
    """Make a kit with new keys for a member who lost theirs or was revoked; the old keys hold no longer.

    Raises:
        ConfigError: the project does not know the name, or they make their own keys.
    """
    with open_custody(directory, None, now) as custody:
        wanted = _find(custody.state.project, name)
        if wanted.enrol:
            raise ConfigError(f"{name} makes its own keys: have it run `fledge enrol {name}` again, then --accept that")
        registry, new_kit = _with_new_keys(custody.registry(), wanted)
        return _carry_out(custody, _without(custody.state, name), registry, [new_kit], now)


def revoke(directory: Path, name: str, now: datetime) -> Provisioned:
    """Sign a registry in which a member's keys hold no longer.

    Raises:
        ConfigError: there is no such member, or it is the aggregator, which can only be replaced.
    """
    with open_custody(directory, None, now) as custody:
        registry = custody.registry()
        if name == AGGREGATOR:
            raise ConfigError("a federation needs its aggregator; replace its keys by: fledge provision --reissue")
        if _held(registry, name) is None:
            raise ConfigError(f"member {name!r}{nearest(name, _members(registry))}")
        (directory / KITS / f"{name}.zip").unlink(missing_ok=True)
        (directory / PASSWORDS / name).unlink(missing_ok=True)
        return _carry_out(custody, _without(custody.state, name), registry.revoke(name), [], now)


def renew(directory: Path, names: Sequence[str], now: datetime) -> Provisioned:
    """Certify the same keys for another term; without names every member's, and the servers' with the aggregator's.

    Raises:
        ConfigError: nothing was ever issued to one of the names.
    """
    with open_custody(directory, None, now) as custody:
        held = custody.state.certificates
        for name in names:
            if name not in held:
                raise ConfigError(f"member {name!r}{nearest(name, held)}")
        authority, days = custody.authority(), custody.state.project.certificate_days
        certificates = {
            name: pki.renew(authority, held[name].encode(), days=days, now=now).decode()
            for name in dict.fromkeys(names or held)
        }
        servers = dict(custody.state.servers)
        if AGGREGATOR in certificates:
            servers = _servers(custody, custody.state, now)
        done = tuple(
            _write_renewed(directory, name, pem, servers if name == AGGREGATOR else {})
            for name, pem in certificates.items()
        )
        custody.save(custody.state.model_copy(update={"certificates": held | certificates, "servers": servers}))
        return Provisioned(
            registry=directory / REGISTRY, version=custody.registry().version, changed=False, renewed=done
        )


def _joined(registry: Registry, project: Project) -> tuple[Registry, list[WantedParticipant], tuple[str, ...]]:
    """The registry under the project's policy and roles, who has to be added, and what cannot be done here."""
    fresh, notes, changed = [], [], {}
    for wanted in project.participants:
        held = _held(registry, wanted.name)
        if held is not None and held.role != wanted.role:
            raise ConfigError(
                f"{wanted.name} has the role {held.role.value}, the project says {wanted.role.value}; "
                "roles never change, so choose another name"
            )
        if held is not None:
            changed[wanted.name] = replace(held, organisation=wanted.organisation, roles=wanted.roles)
        elif any(entry.name == wanted.name for entry in registry.entries):
            again = f"--accept a new request of {wanted.name}" if wanted.enrol else f"--reissue {wanted.name}"
            notes.append(f"{wanted.name} is revoked; take it out of the project, or let it in again: {again}")
        elif wanted.enrol:
            flag = " --operator" if wanted.role == Role.OPERATOR else ""
            command = f"fledge enrol {wanted.name}{flag} --federation {project.name} -o {wanted.name}"
            notes.append(f"{wanted.name} makes its own keys: there, {command}; here, --accept the request")
        else:
            fresh.append(wanted)
    known = {wanted.name for wanted in project.participants}
    for name in _members(registry):
        if name not in known:
            notes.append(f"{name} is no longer in the project but still a member; cut it off by: --revoke {name}")
    entries = tuple(changed.get(e.name, e) if e.revoked is None else e for e in registry.entries)
    if entries != registry.entries or project.policy != registry.policy:
        registry = replace(registry, version=registry.version + 1, entries=entries, policy=project.policy)
    return registry, fresh, tuple(notes)


def _ciphered(state: CustodyState, suite: Suite) -> tuple[str, ...]:
    """What to do before members are told of another suite."""
    if not state.certificates or suite is Suite.XCHACHA20:  # which every member reads, however old
        return ()
    return (
        f"members encrypt with {suite.word} from now on; one with an older fledge takes no list that says so, so "
        "upgrade them all before you put it in force",
    )


def _moved(state: CustodyState, project: Project) -> tuple[str, ...]:
    """What kits that are out say otherwise than the project now does."""
    if not state.certificates:
        return ()
    old = state.project
    pairs = {
        "broker": (old.broker_url, project.broker_url),
        "store": (old.store_url, project.store_url),
        "access": (old.access, project.access),
        "insecure": (old.insecure, project.insecure),
    }
    return tuple(
        f"{key} is now {new}; kits from before say {was}: change it in their configuration, or --reissue NAME"
        for key, (was, new) in pairs.items()
        if was != new
    )


def _with_new_keys(registry: Registry, wanted: WantedParticipant) -> tuple[Registry, _NewKit]:
    identity, tls_key = Identity.generate(wanted.name, wanted.role), pki.new_key()
    registry = registry.with_entry(identity.public, organisation=wanted.organisation, roles=wanted.roles)
    secrets = {KEYS[wanted.role]: identity.to_bytes(), TLS_KEY: tls_key}
    return registry, _NewKit(wanted=wanted, tls=pki.public_key(tls_key), secrets=secrets)


def _carry_out(
    custody: Custody,
    state: CustodyState,
    registry: Registry,
    new_kits: Sequence[_NewKit],
    now: datetime,
    *,
    notes: tuple[str, ...] = (),
) -> Provisioned:
    """Sign, make the kits, and only then let the new state count."""
    before = custody.state
    changed = registry != custody.registry()
    record = custody.sign(registry) if changed else base64.b64decode(before.registry)
    issued: list[Issued] = []
    renewed: tuple[Renewed, ...] = ()
    for new_kit in new_kits:
        state, kit = _issue(custody, state, new_kit, record, now)
        issued.append(kit)
    if state.servers and AGGREGATOR not in {new_kit.wanted.name for new_kit in new_kits}:
        state, renewed = _served_elsewhere(custody, state, now)
    state = state.model_copy(update={"registry": base64.b64encode(record).decode()})
    if changed and before.certificates:  # the hub's first kit holds the list itself
        notes += (
            f"at the hub `fledge deploy members {custody.directory} --kit HUB --operator OPERATOR` puts it in force",
        )
    if (state.hub, state.sites, state.operators) != (before.hub, before.sites, before.operators):
        notes += (
            f"the store has to know the identities in {custody.directory / STORE}; of SeaweedFS `deploy members` "
            "writes them anew with --identities FILE",
        )
    if state != before:
        custody.save(state)
    return Provisioned(
        registry=custody.directory / REGISTRY,
        version=registry.version,
        changed=changed,
        kits=tuple(issued),
        renewed=renewed,
        notes=notes,
    )


def _issue(
    custody: Custody, state: CustodyState, new_kit: _NewKit, record: bytes, now: datetime
) -> tuple[CustodyState, Issued]:
    wanted, project, authority = new_kit.wanted, state.project, custody.authority()
    name, role = wanted.name, wanted.role
    certificate = pki.issue_client(authority, name, new_kit.tls, days=project.certificate_days, now=now)
    files = kit_files.texts(project, role, name, bytes.fromhex(state.root)) | dict(new_kit.secrets)
    files |= {kit_files.REGISTRY: record, AUTHORITY: authority.certificate, CERTIFICATE: certificate}
    update: dict[str, object] = {"certificates": state.certificates | {name: certificate.decode()}}
    if role != Role.AGGREGATOR and project.access == "credentials":
        group, held = ("sites", state.sites) if role == Role.SITE else ("operators", state.operators)
        own = held.get(name) or new_credentials()
        files[CREDENTIALS] = kit_files.credentials(own, {})
        update[group] = held | {name: own}
    if role == Role.AGGREGATOR:
        hub = {key: new_credentials() for key in (AGGREGATOR, *SIGNING)}
        files[CREDENTIALS] = kit_files.credentials(hub[AGGREGATOR], {key: hub[key] for key in SIGNING})
        servers = {server: _new_server(custody, project, server, files, now) for server in SERVERS}
        update |= {"hub": hub, "servers": servers}
    path, password = custody.directory / KITS / f"{name}.zip", random_code(PASSWORD_GROUPS)
    password_file = custody.directory / PASSWORDS / name
    for each in (path, password_file):
        private_directory(each.parent)
    write_kit(path, files, password)
    replace_private(password_file, f"{password}\n".encode())
    issued = Issued(
        name=name,
        role=role,
        path=path,
        password=password,
        password_file=password_file,
        expires=pki.expires(certificate),
    )
    return state.model_copy(update=update), issued


def _new_server(custody: Custody, project: Project, server: str, files: dict[str, bytes], now: datetime) -> str:
    """Make a server's key and certificate, put both into `files`, and return the certificate (PEM)."""
    key = pki.new_key()
    certificate = _certify_server(custody, project, server, pki.public_key(key), now)
    files |= {f"servers/{server}.key": key, f"servers/{server}.pem": certificate}
    return certificate.decode()


def _certify_server(custody: Custody, project: Project, server: str, public: bytes, now: datetime) -> bytes:
    return pki.issue_server(
        custody.authority(),
        f"{server}.server",  # with a dot, so that it is no participant's name
        public,
        _hosts(project, server),
        days=project.certificate_days,
        now=now,
    )


def _hosts(project: Project, server: str) -> tuple[str, ...]:
    url = project.broker_url if server == "broker" else project.store_url
    return (urlsplit(url).hostname or "", project.aggregator.address, *project.aggregator.names)


def _servers(custody: Custody, state: CustodyState, now: datetime) -> dict[str, str]:
    """New certificates of the servers for the keys they have."""
    return {
        server: _certify_server(custody, state.project, server, pki.public_key(pem.encode()), now).decode()
        for server, pem in state.servers.items()
    }


def _served_elsewhere(custody: Custody, state: CustodyState, now: datetime) -> tuple[CustodyState, tuple[Renewed, ...]]:
    """New certificates where the servers are reached under other names than before."""
    if all(pki.covers(pem.encode(), _hosts(state.project, server)) for server, pem in state.servers.items()):
        return state, ()
    servers = _servers(custody, state, now)
    pem = state.certificates[AGGREGATOR]
    done = _write_renewed(custody.directory, AGGREGATOR, pem, servers)
    return state.model_copy(update={"servers": servers}), (done,)


def _write_renewed(directory: Path, name: str, pem: str, servers: Mapping[str, str]) -> Renewed:
    folder = directory / RENEWED / name
    files = {CERTIFICATE: pem} | {f"servers/{server}.pem": text for server, text in servers.items()}
    for file, text in files.items():
        private_directory((folder / file).parent)
        replace_private(folder / file, text.encode())
    return Renewed(name=name, folder=folder, expires=min(pki.expires(text.encode()) for text in files.values()))


def _without(state: CustodyState, name: str) -> CustodyState:
    certificates, sites, operators = dict(state.certificates), dict(state.sites), dict(state.operators)
    certificates.pop(name, None)
    sites.pop(name, None)
    operators.pop(name, None)
    return state.model_copy(update={"certificates": certificates, "sites": sites, "operators": operators})


def _expected(project: Project, asked: EnrolmentRequest) -> WantedParticipant:
    wanted = _find(project, asked.name)
    if wanted.role != asked.role:
        raise ConfigError(
            f"{asked.name} asks for the role {asked.role.value}, the project says {wanted.role.value}; "
            "correct one of them"
        )
    if not wanted.enrol:
        raise ConfigError(
            f"the project makes the keys of {asked.name} itself; if it shall bring its own, "
            f"say `enrol: true` there and run `fledge provision` again"
        )
    return wanted


def _find(project: Project, name: str) -> WantedParticipant:
    known = {wanted.name: wanted for wanted in project.participants}
    if name not in known:
        raise ConfigError(f"participant {name!r}{nearest(name, known)} (add it to the project to let it in)")
    return known[name]


def _held(registry: Registry, name: str) -> Entry | None:
    return next((entry for entry in registry.entries if entry.name == name and entry.revoked is None), None)


def _members(registry: Registry) -> list[str]:
    return [entry.name for entry in registry.entries if entry.revoked is None]
