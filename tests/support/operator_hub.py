"""A federation that answers an operator from memory: what a console shows is tested without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledge.operator.console import Answer
from protocol.commands import COMMANDS
from protocol.keys import Identity, Role
from protocol.registry import Registry, sign_registry
from protocol.rights import STOCK, Organisation, Policy

Canned = Mapping[str, Any] | Answer | Callable[[Mapping[str, Any], str], Answer | Mapping[str, Any]]

STATUS: Mapping[str, Any] = {
    "run": "run-7",
    "state": "running",
    "version": 12,
    "site": ("north", "south", "west"),
    "seen": (3.2, 7300.0, -1.0),
    "doing": ("training", "idle", "never seen"),
    "run_of": ("run-7", "run-7", "-"),
    "base": (12, 11, 0),
    "progress": (0.5, 0.0, 0.0),
    "staleness": (0, 1, 0),
    "waiting": (1, 0, 0),
    "held": ("ok", "quarantined", "revoked"),
}
ANSWERS: Mapping[str, Canned] = {
    "status": STATUS,
    "site.list": {
        "site": ("aggregator", "north", "south", "west", "alice"),
        "role": ("aggregator", "site", "site", "site", "operator"),
        "organisation": ("hub", "hospital", "clinic", "clinic", "hub"),
        "held": ("ok", "ok", "ok", "revoked", "ok"),
        "since": (1, 2, 3, 4, 5),
    },
    "site.show": {"site_name": "north", "held": "ok", "update": ("ab12",), "base": (11,), "state": ("merged",)},
    "run.list": {
        "run": ("run-7", "chest"),
        "state": ("running", "stopped"),
        "reason": ("ok", "ok"),
        "version": (12, 3),
    },
    "run.show": {"name": "run-7", "state": "running", "strategy.name": "fedbuff", "release_decay": 0.8},
    "model.list": {"version": (12, 11), "digest": ("a" * 64, "b" * 64), "members": (2, 2), "sites": ("north", "south")},
    "model.show": {"number": 12, "site": ("north",), "update": ("ab12",), "weight": (0.25,), "norm": (1.5,)},
    "update.list": {"update": ("ab12",), "site": ("north",), "state": ("merged",), "norm": (1.234567,)},
    "update.show": {"update": "ab12", "site": "north", "state": "merged"},
    "run.create": {"run": "chest", "code": "c" * 64, "spec": "d" * 64, "version": 0, "size": 100},
    "run.offer": {"run": "run-7", "code": "c" * 64, "record": "e" * 64},
    "run.clone": {"run": "chest-2", "code": "c" * 64, "spec": "d" * 64, "version": 0, "size": 100},
    "model.search": {"name": ("lung",), "run": ("run-7",), "version": (12,), "labels": ("ct",), "channels": ("",)},
    "metrics": {
        "version": (12, 12, 11),
        "site": ("north", "south", "north"),
        "metric": ("accuracy",) * 3,
        "value": (0.75, 0.5, 0.25),
        "examples": (100, 50, 100),
    },
    "dead.list": {"id": (4,), "queue": ("in.north",), "reason": ("malformed",), "bytes": (77,), "at": (86400.0,)},
    "dead.show": {"id": 4, "queue": "in.north", "reason": "malformed", "bytes": 77, "at": 86400.0},
    "queue.list": {"queue": ("in.north",), "ready": (2,), "consumers": (1,)},
    "audit.log": {
        "number": (1,),
        "at": (86400.0,),
        "kind": ("command",),
        "entry": ('{"command": "run.pause"}',),
        "hash": ("c" * 16,),
    },
    "site.doctor": {"check": ("dns", "tls"), "verdict": ("ok", "failed"), "code": ("-", "tls_intercepted")},
    "sys.info": {"metric": ("memory_total", "gpu_count"), "value": ("16 GiB", 2)},
    "stats": {"figure": ("min_cell", "patients"), "value": (10, 205)},
    "logs": {"lines": ("2030-01-01 info worker.started", "2030-01-01 error training.failed"), "next": 17},
    "file.env": {"name": ("FLEDGE_BROKER",), "value": ("set",)},
    "file.ls": {"lines": ("worker.log", "settings.json")},
    "file.cat": {"lines": ("one", "two\tthree")},
    "file.head": {"lines": ("one",)},
    "file.tail": {"lines": ("two",)},
    "file.grep": {"lines": ("two",)},
}


@dataclass(frozen=True)
class Asked:
    """One order as it was given."""

    command: str
    arguments: Mapping[str, Any]
    targets: tuple[str, ...]
    timeout: float


@dataclass
class Hub:
    """Answers every order there is; `answers` replaces what it says, for one order or one order at one site."""

    answers: dict[str, Canned] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    name: str = "alice"

    def open(self, kit: Path) -> AbstractContextManager[Hub]:
        """What `fledge.operator.open.open_console` is to the real one."""
        return self._open()

    @contextmanager
    def _open(self) -> Iterator[Hub]:
        self.opened += 1
        yield self
        self.closed += 1

    def ask(
        self, command: str, arguments: Mapping[str, Any], targets: Sequence[str] = (), timeout: float = 10.0
    ) -> list[Answer]:
        """Note the order and answer it."""
        assert bool(targets) == COMMANDS[command].at_sites, command
        self.asked.append(Asked(command, dict(arguments), tuple(targets), timeout))
        return [self._answer(command, arguments, sender) for sender in targets or ["aggregator"]]

    def _answer(self, command: str, arguments: Mapping[str, Any], sender: str) -> Answer:
        known = {**ANSWERS, **self.answers}
        answer = known.get(f"{command}@{sender}", known.get(command, {}))
        if callable(answer):
            answer = answer(arguments, sender)
        if isinstance(answer, Answer):
            return answer
        text = "" if answer else f"{command} is done"
        return Answer(sender=sender, ok=True, reason="ok", text=text, values=answer)

    @property
    def last(self) -> Asked:
        """The order that came last."""
        return self.asked[-1]


def refused(reason: str = "not_authorized", text: str = "Authorization Error: alice is not authorized") -> Answer:
    """The aggregator's no."""
    return Answer(sender="aggregator", ok=False, reason=reason, text=text, values={})


def silent(site: str) -> Answer:
    """What stands for a site that has not answered."""
    text = f"site {site} has not been seen for 3 hours; the command is queued and will run when it returns"
    return Answer(sender=site, ok=False, reason="no_answer", text=text, values={})


def kit(folder: Path, identities: dict[str, Identity] | None = None) -> Path:
    """An operator's kit, as far as a console reads it by itself; `identities` takes everybody's keys."""
    root = Identity.generate("root", Role.ROOT)
    general = tuple(
        Organisation(name=name, groups=groups)
        for name, groups in (
            ("hub", ("general", "strict")),
            ("hospital", ("general", "relaxed")),
            ("clinic", ("general",)),
        )
    )
    registry = Registry(version=0, entries=(), policy=Policy(groups=STOCK.groups, organisations=general))
    for name, role, organisation, roles in (
        ("aggregator", Role.AGGREGATOR, "hub", ()),
        ("north", Role.SITE, "hospital", ()),
        ("south", Role.SITE, "clinic", ()),
        ("alice", Role.OPERATOR, "hub", ("lead_it",)),
        ("bob", Role.OPERATOR, "hospital", ("site_researcher", "site_it")),
    ):
        identity = Identity.generate(name, role)
        registry = registry.with_entry(identity.public, organisation=organisation, roles=roles)
        if identities is not None:
            identities[name] = identity
    folder.mkdir(mode=0o700)
    (folder / "registry.bin").write_bytes(sign_registry(registry, root, "clinics", b"m" * 16))
    (folder / "operator.toml").write_text(
        'federation = "clinics"\nbroker = "amqps://hub.example:5671/clinics"\n'
        f'root = "{bytes(root.sign.verify_key).hex()}"\n',
        encoding="utf-8",
    )
    return folder
