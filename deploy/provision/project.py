"""`project.yml`: who takes part in a federation, where its servers are, and who may do what.

The shape is Clara's where it fits: a name, the centre, sites with their organisation, operators with their roles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, quote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.blobs.base import check_head
from broker.blobs.s3.url import SYSTEM, parse_s3_url
from broker.net.tls import is_local
from broker.runtime.settings import explain, nearest
from deploy.keyfiles import read_bounded
from protocol.codec import Flag, Word
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.limits import RECIPIENTS
from protocol.rights import RIGHTS, ROLES, RULES, STOCK, Group, Organisation, Policy
from protocol.topology import AGGREGATOR, check_site

DEFAULT_GROUPS = ("general",)
"""What answers for an organisation that `organisations` does not mention."""
_LIMIT = 1024**2
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f-\x9f]{1,64}@[^@\s.\x00-\x1f\x7f-\x9f]+(\.[^@\s.\x00-\x1f\x7f-\x9f]+)+")

_HOST = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9._:-]*[A-Za-z0-9])?")
Host = Annotated[str, Field(strict=True, max_length=253, pattern=r"^[A-Za-z0-9:]([A-Za-z0-9.:-]*[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Part):
    """The centre: who runs it, and the machine that broker and store are reached on unless they say otherwise."""

    org: Word
    address: Host
    broker_port: Port = 5671
    store_port: Port = 443
    names: tuple[Host, ...] = ()
    """Further names and addresses that the servers' certificates are good for."""


class Site(_Part):
    """A hospital."""

    name: str
    org: Word
    enrol: Flag = False
    """It makes its own keys (`fledge enrol`); otherwise they come with the kit."""


class Operator(_Part):
    """A person who sends commands by `fledge ctl`."""

    name: str
    email: str
    """Only shown."""
    org: Word
    roles: tuple[Word, ...]
    enrol: Flag = False
    """They make their own keys; otherwise they come with the kit."""


class GroupAnswers(_Part):
    """What a group answers: to rules of sites, and for each role to rights."""

    rules: dict[str, Flag] = {}
    rights: dict[Word, dict[str, Flag]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedParticipant:
    """One participant as the project wants it."""

    name: str
    role: Role
    organisation: str
    roles: tuple[str, ...] = ()
    enrol: bool = False


class Project(_Part):
    """A federation as its provisioner describes it."""

    name: Word
    aggregator: Hub
    broker: str = ""
    """`amqps://host:port/vhost`; default: on the centre's machine."""
    store: str = ""
    """`s3s://host:port/bucket[/prefix][?region=…&cacertfile=system]`; default: on the centre's machine."""
    sites: tuple[Site, ...] = Field(min_length=1, max_length=RECIPIENTS)
    operators: tuple[Operator, ...] = Field(default=(), max_length=RECIPIENTS)
    groups: dict[Word, GroupAnswers] = {}
    """Groups of one's own beside the stock ones; one of the same name replaces it."""
    organisations: dict[Word, tuple[Word, ...]] = {}
    """The groups that answer for an organisation's sites."""
    access: Literal["credentials", "presigned"] = "credentials"
    """How sites and operators reach the store: with an identity of their own, or by URLs that the aggregator signs."""
    cipher: Literal["aegis256", "xchacha20"] | None = None
    """What members encrypt models and updates with; default: what the registry says, `xchacha20` in a new one."""
    insecure: Flag = False
    """Let plain `amqp:` and `s3:` pass outside this machine."""
    trainer: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$", examples=["module:factory"])] | None = None
    """The sites' training code, `module:factory`; each site may change it."""
    certificate_days: Annotated[int, Field(ge=1, le=825)] = 365
    """How long certificates for TLS hold."""

    @property
    def broker_url(self) -> str:
        """Where the broker is, port and vhost included."""
        return self.broker or f"amqps://{_netloc(self.aggregator.address, self.aggregator.broker_port)}/{self.name}"

    @property
    def store_url(self) -> str:
        """Where the store is, port and bucket included."""
        return self.store or f"s3s://{_netloc(self.aggregator.address, self.aggregator.store_port)}/{self.name.lower()}"

    @property
    def participants(self) -> tuple[WantedParticipant, ...]:
        """The aggregator, the sites and the operators, in this order."""
        return (
            WantedParticipant(name=AGGREGATOR, role=Role.AGGREGATOR, organisation=self.aggregator.org),
            *(WantedParticipant(name=s.name, role=Role.SITE, organisation=s.org, enrol=s.enrol) for s in self.sites),
            *(
                WantedParticipant(name=o.name, role=Role.OPERATOR, organisation=o.org, roles=o.roles, enrol=o.enrol)
                for o in self.operators
            ),
        )

    @property
    def policy(self) -> Policy:
        """The stock groups, changed and extended by the project's, for every organisation of a site."""
        own = {
            name: Group(name=name, rules=dict(group.rules), rights={k: dict(v) for k, v in group.rights.items()})
            for name, group in self.groups.items()
        }
        groups = {group.name: group for group in STOCK.groups} | own
        named = dict.fromkeys([self.aggregator.org, *(site.org for site in self.sites)], DEFAULT_GROUPS)
        return Policy(
            groups=tuple(groups.values()),
            organisations=tuple(Organisation(name=k, groups=v) for k, v in (named | self.organisations).items()),
        )


def read_project(path: Path) -> Project:
    """Read and check `project.yml`.

    Raises:
        ConfigError: it is missing, not YAML, or a value is wrong; says which and what would be right.
    """
    raw = read_bounded(path, _LIMIT, "the project file; `fledge provision --example` prints one")
    try:
        text = raw.decode("utf-8")
        # Every value is read as text, so that a name like 2024-01-01 is a name; the models make numbers of numbers.
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.BaseLoader))
        table = _with_flags(yaml.load(text, Loader=yaml.BaseLoader))  # which makes nothing but texts, lists and tables
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or "not text in UTF-8"
        raise ConfigError(f"{path}{where}: not valid YAML: {why}; mind the indentation and the colons") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return check_project(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_project(table: object) -> Project:
    """The project that plain values describe.

    Raises:
        ConfigError: a value is wrong; says which and what would be right.
    """
    if not isinstance(table, Mapping):
        raise ConfigError("a project is a table that begins with `name:`; `fledge provision --example` prints one")
    if "he" in table:
        raise ConfigError(
            "`he` is reserved for homomorphic encryption, which fledge does not do yet; take the block out, "
            "and have the sites add noise (privacy filters) if the aggregator must not see their updates"
        )
    try:
        project = Project.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, Project, table, shown=True)) from None
    check_head(project.name)
    _check_people(project)
    _check_policy(project)
    _check_url("broker", project.broker_url, "amqp", project.insecure)
    _check_url("store", project.store_url, "s3", project.insecure)
    return project


def _check_people(project: Project) -> None:
    names = [wanted.name for wanted in project.participants[1:]]
    for name in names:
        check_site(name)
    if twice := _repeated(names):
        raise ConfigError(f"{twice!r} stands for two sites or operators; every one needs a name of its own")
    for operator in project.operators:
        if not _EMAIL.fullmatch(operator.email):
            raise ConfigError(f"operator {operator.name}: {operator.email!r} is no e-mail address; write name@host.org")
        if not operator.roles:
            raise ConfigError(f"operator {operator.name} has no role; known: {', '.join(ROLES)}")
    if twice := _repeated(operator.email.lower() for operator in project.operators):
        raise ConfigError(f"{twice} stands for two operators; people share no account")


def _check_policy(project: Project) -> None:
    groups = project.policy.groups
    roles = {*ROLES, *(role for group in groups for role in group.rights)}
    for operator in project.operators:
        for role in operator.roles:
            _known(f"operator {operator.name}: role", role, roles)
    for name, group in project.groups.items():
        for rule in group.rules:
            _known(f"group {name}: rule", rule, RULES)
        for role, answers in group.rights.items():
            for right in answers:
                _known(f"group {name}, role {role}: right", right, RIGHTS)
    present = {wanted.organisation for wanted in project.participants}
    for name, members in project.organisations.items():
        _known("organisations: org", name, present)
        for group_name in members:
            _known(f"organisation {name}: group", group_name, {group.name for group in groups})


def _check_url(key: str, url: str, scheme: str, insecure: bool) -> None:
    shape = f"{scheme}s://host:port/{'vhost' if scheme == 'amqp' else 'bucket[/prefix]'}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{key} is not a URL; write {shape}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{key} holds a user or password; everybody has a certificate, so write {shape}")
    if re.search(r"[^!-~]", url) or (host and not _HOST.fullmatch(host)):
        raise ConfigError(
            f"{key} {url!r}: a host has letters, digits, '.', '_' and '-' (of another script: as xn--...), and"
            f" no blanks stand in a URL; write {shape}"
        )
    if (parts.query and not _for_everybody(scheme, parts.query)) or parts.fragment:
        raise ConfigError(
            f"{key} {url!r}: write {shape}; options that are everybody's are the store's alone: ?region= and"
            " ?cacertfile=system"
        )
    if parts.scheme not in (scheme, f"{scheme}s") or not host or not port:
        raise ConfigError(f"{key} {url!r}: write {shape}, the port included")
    if scheme == "amqp" and not re.fullmatch(r"/[\w.-]+", parts.path):
        raise ConfigError(f"{key} {url!r} needs a vhost of letters, digits, '.', '_' and '-': write {shape}")
    if scheme == "s3":
        parse_s3_url(url, environ={})
    if parts.scheme == scheme and not is_local(host) and not insecure:
        raise ConfigError(
            f"{key} {url!r} is not encrypted; write {scheme}s://, or `insecure: true` if the network is a trial's own"
        )


def _for_everybody(scheme: str, query: str) -> bool:
    """Whether these options of a URL mean the same on all machines: those with files of a machine's own do not."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    return (
        scheme == "s3" and not options.keys() - {"region", "cacertfile"} and options.get("cacertfile", SYSTEM) == SYSTEM
    )


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{quote(host)}:{port}"


def _repeated(names: Iterable[str]) -> str:
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _known(what: str, word: str, words: Iterable[str]) -> None:
    listed = sorted(words)
    if word not in listed:
        raise ConfigError(f"{what} {word!r}{nearest(word, listed)}")


def _with_flags(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_flags(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_flags(item) for item in value]
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    """YAML takes the last of two equal keys in silence; here that is an error."""
    for each in _nodes(node):
        if isinstance(each, yaml.MappingNode):
            keys = [key.value for key, _ in each.value if isinstance(key, yaml.ScalarNode)]
            if twice := _repeated(keys):
                raise ConfigError(f"line {each.start_mark.line + 1}: {twice!r} stands there twice; keep one")


def _nodes(top: yaml.Node | None) -> Iterator[yaml.Node]:
    seen: set[int] = set()
    pending = [top]
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:  # an alias is the node it stands for, and may stand inside it
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            pending += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
