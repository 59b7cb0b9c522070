"""The rules about operators' commands: who is obeyed, once each, and what becomes of sites that were sent away.

1. A counter counts once: lower or equal ones are noted in the ledger and answered no more.
2. Everything else that is genuine is noted, with the reason if it is refused, and answered.
3. What sites are to do is handed to them as it was signed; they check it again.
4. A revoked site is cut off by what an operator signed alone; it stays so until the root's registry says the same, and
   only a key that the root lists anew brings the name back. A quarantined one stays connected, its updates are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aggregator.domain.events import CommandArrived
from aggregator.domain.state import AT_REST, MOST_GOING_ON, TRANSITIONS, Sanction, SanctionKind, choose
from aggregator.domain.writes import SetCounter
from aggregator.rules.catalogue import Catalogue
from aggregator.rules.decisions import Decisions
from protocol.codec import is_word
from protocol.commands import COMMANDS, COUNTER_AHEAD
from protocol.messages import GOING_ON, RunState
from protocol.registry import Registry

REPLAYED = "replayed"
_SANCTIONS: Mapping[str, SanctionKind] = {
    "site.revoke": "revoked",
    "site.quarantine": "quarantined",
    "site.readmit": "none",
}


class Commands:
    """What operators commanded so far, as far as it matters from now on."""

    def __init__(self, counters: Mapping[str, int], sanctions: Mapping[str, Sanction]) -> None:
        self._counters = dict(counters)
        self._sanctions = dict(sanctions)

    # ---- sites

    @property
    def revoked(self) -> frozenset[str]:
        """Sites that operators revoked."""
        return frozenset(site for site, it in list(self._sanctions.items()) if it.kind == "revoked")

    def quarantined(self, site: str) -> bool:
        """Whether a site's updates are refused."""
        return self.held(site) == "quarantined"

    def held(self, site: str) -> str:
        """`revoked`, `quarantined` or `ok`."""
        noted = self._sanctions.get(site)
        return "ok" if noted is None or noted.kind == "none" else noted.kind

    def narrowed(self, registry: Registry) -> Registry:
        """The root's registry without whom operators revoked; it keeps its version, which is the root's to count."""
        number = registry.version
        for site in self.revoked:
            registry = registry.revoke(site, version=number)
        return registry

    def follow(self, registry: Registry) -> None:
        """Drop sanctions that the root has settled: it revoked the site too, or has listed it with other keys since."""
        held = {entry.name: entry.since for entry in registry.entries if entry.revoked is None}
        for site in self.revoked:
            if held.get(site, registry.version) > self._sanctions[site].registry:
                del self._sanctions[site]

    def sanction(self, event: CommandArrived, registry: int) -> tuple[str, Sanction] | None:
        """The site and what a command does to it, if it is of that sort; noted from here on."""
        kind = _SANCTIONS.get(event.command)
        if kind is None:
            return None
        site = str(event.arguments.get("site", ""))
        self._sanctions[site] = Sanction(kind, registry)
        return site, self._sanctions[site]

    # ---- commands

    def judge(self, event: CommandArrived, out: Decisions, present: Present) -> CommandVerdict:
        """Whether a command is carried out; noted, counted and acked either way."""
        out.settle(event.delivery)
        if event.counter <= self.counter(event):
            verdict = CommandVerdict(REPLAYED)
        else:
            verdict = self._verdict(event, present)
            if event.objection != COUNTER_AHEAD:
                self._counters[_key(event)] = event.counter
                out.write(SetCounter(key=_key(event), counter=event.counter))
        why = verdict.why
        entry = {"operator": event.operator, "command": event.command, "taken": why == "ok", "reason": why}
        entry |= {"run": verdict.run} if verdict.run else {}
        out.audit("command", entry | ({"id": event.id, "sites": event.targets} if event.targets else {}))
        return verdict

    def count(self, event: CommandArrived, out: Decisions) -> None:
        """Let a command that found a defect count as given, so that it is not given again."""
        out.settle(event.delivery)
        self._counters[_key(event)] = max(self.counter(event), event.counter)
        out.write(SetCounter(key=_key(event), counter=self._counters[_key(event)]))
        entry = {"operator": event.operator, "command": event.command, "taken": False, "reason": "defect"}
        out.audit("command", entry)

    def counter(self, event: CommandArrived) -> int:
        """The highest counter noted for the key a command is signed with."""
        return self._counters.get(_key(event), 0)

    def _verdict(self, event: CommandArrived, present: Present) -> CommandVerdict:
        why = self._refusal(event, present.sites)
        if why == "ok" and event.command in ABOUT_RUNS:
            return about_run(event, present)
        return CommandVerdict(about_models(event, present.catalogue) if why == "ok" else why)

    def _refusal(self, event: CommandArrived, sites: Collection[str]) -> str:
        known = COMMANDS.get(event.command)
        if known is None:
            return "unknown_command"
        if event.objection != "ok":
            return event.objection
        if known.at_sites and not event.targets:
            return "no_site"
        if event.targets and not known.at_sites:
            return "bad_argument"
        named = [*event.targets, *([str(event.arguments.get("site", ""))] if event.command in _SANCTIONS else [])]
        if any(site not in sites for site in named):
            return "unknown_site"
        if event.command == "site.readmit" and not self.quarantined(named[-1]):
            return "not_quarantined"
        if event.command == "dead.purge" and not isinstance(event.arguments.get("id"), int | None):
            return "bad_argument"
        return "ok"


def _key(event: CommandArrived) -> str:
    return event.signer.hex() or event.operator


ABOUT_RUNS = frozenset(
    {*TRANSITIONS, "run.create", "run.clone", "run.offer", "run.delete", "model.export", "model.publish"}
)
PREPARED = frozenset({"run.create", "run.clone", "run.offer", "model.export", "model.publish", "model.card"})
"""Commands that take a while: what they make is made ready first, and stands only once the rules have taken it."""
OF_VERSIONS = frozenset({"model.export", "model.publish"})
"""Commands about one version of a run: by its number, or one of these words."""
BEST, NEWEST = "best", "newest"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}")
MOST_RUNS = 256
"""Runs there may be at a time; each takes some memory for as long as it is there."""
MOST_OF_ONE = 32
"""Runs of one operator that do not go on."""
_MOST_VERSIONS = 2**31
GOES_ON_AGAIN = ("run.start", "run.resume")
"""Commands that take an end of their own, `until`."""
TEXTS: Mapping[str, str] = {
    **{f"run_{state.value}": f"the run is {state.value}" for state in RunState},
    "unknown_run": "there is no such run; `run list` shows which there are",
    "no_run": "there is no run yet; `run create` makes one",
    "which_run": "several runs come into question; name one of them, `run list` shows which there are",
    "run_exists": "a run of this name is there, or was: names are not used twice",
    "too_many_runs": "as many runs are there, or go on, as this aggregator takes; stop or delete one first",
    "busy": "this aggregator is still at work on an order of yours that takes time; give this one when it has answered",
    "run_complete": "the run has reached one of the ends in its settings; `run start RUN --until VERSION` goes on",
    "version_is_there": "the run has come to that version already; name a later one to end with",
    "not_measured": "no version of the run is known to be the best: its sites have measured none yet; name a version",
    "unknown_model": "no model was published under this name; `model search` shows which there are",
    "name_taken": "a model or a channel has this name; choose another one",
    "no_model_before": "the channel has named no other model before",
    "unknown_site": "there is no such site; `site list` shows who there is",
    "not_quarantined": "the site is not quarantined",
    "no_site": "name at least one site",
    "bad_argument": "an argument is missing or wrong; `--help` tells which there are",
    "unknown_command": "this aggregator knows no such command; its software may be older",
}
"""What the words of a refusal mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What commands are judged by."""

    sites: Collection[str]
    runs: Mapping[str, RunState] = field(default_factory=dict)
    taken: Collection[str] = ()
    """Names that no new run may have."""
    by: Mapping[str, str] = field(default_factory=dict)
    """The operator who brought each run; empty: it was begun at the hub."""
    busy: Collection[str] = ()
    """Operators whose last command that takes time is still being worked on."""
    complete: Collection[str] = ()
    """Runs that have reached one of the ends in their settings."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """The newest version of each run."""
    measured: Collection[str] = ()
    """Runs of which a version is known to be the best."""
    catalogue: Catalogue


@dataclass(frozen=True, slots=True)
class CommandVerdict:
    """`ok` or the fixed word that says why not, and the run a command is for."""

    why: str
    run: str = ""

    @property
    def text(self) -> str:
        """The word in a sentence, if there is one."""
        return TEXTS.get(self.why, "")


def about_run(event: CommandArrived, present: Present) -> CommandVerdict:
    """What speaks against a command about a run."""
    arguments = event.arguments
    if event.command in PREPARED and event.operator in present.busy:
        return CommandVerdict("busy")
    if event.command == "run.create":
        return _new(arguments.get("run"), present, event.operator)
    run, why = choose(arguments.get("run"), present.runs)
    if why != "ok":
        return CommandVerdict(why)
    state = present.runs[run]
    if event.command == "run.clone":
        return CommandVerdict(_new(arguments.get("as"), present, event.operator).why, run)
    if event.command == "run.delete" and state not in AT_REST:
        return CommandVerdict(f"run_{state.value}", run)
    if event.command in OF_VERSIONS and (why := _of_version(arguments.get("version"), run in present.measured)) != "ok":
        return CommandVerdict(why, run)
    if event.command == "model.publish":
        name = arguments.get("name")
        if not is_word(name):
            return CommandVerdict("bad_argument", run)
        return CommandVerdict("name_taken" if present.catalogue.has(str(name)) else "ok", run)
    wanted = TRANSITIONS.get(event.command)
    if wanted is not None and state not in wanted[1]:
        return CommandVerdict(f"run_{state.value}", run)
    going_on = sum(each in GOING_ON for each in present.runs.values())
    if event.command in GOES_ON_AGAIN and state not in GOING_ON and going_on >= MOST_GOING_ON:
        return CommandVerdict("too_many_runs", run)
    if event.command in GOES_ON_AGAIN:
        return CommandVerdict(_going_on(arguments.get("until"), present.versions[run], run in present.complete), run)
    return CommandVerdict("ok", run)


def _going_on(until: object, version: int, complete: bool) -> str:
    """What speaks against letting a run go on, in a word; `until` is the version that is to end it now."""
    if until is None:
        return "run_complete" if complete else "ok"
    if not isinstance(until, int) or isinstance(until, bool) or not 0 < until < _MOST_VERSIONS:
        return "bad_argument"
    return "ok" if until > version else "version_is_there"


def _of_version(named: object, measured: bool) -> str:
    """What speaks against how a version is named, in a word."""
    if isinstance(named, str) and named not in (BEST, NEWEST):
        return "bad_argument"
    return "not_measured" if named == BEST and not measured else "ok"


def about_models(event: CommandArrived, catalogue: Catalogue) -> str:
    """What speaks against a command about published models, in a word."""
    name, channel = event.arguments.get("name"), event.arguments.get("channel")
    needed = {"model.promote": (name, channel), "model.rollback": (channel,), "model.card": (name,)}
    if not all(map(is_word, needed.get(event.command, ()))):
        return "bad_argument"
    if event.command == "model.promote":
        if not catalogue.is_model(str(name)):
            return "unknown_model"
        return "name_taken" if catalogue.is_model(str(channel)) else "ok"
    if event.command == "model.card" and not catalogue.resolve(str(name)):
        return "unknown_model"
    if event.command == "model.rollback" and catalogue.before(str(channel)) is None:
        return "no_model_before"
    return "ok"


def _new(name: object, present: Present, operator: str) -> CommandVerdict:
    if not isinstance(name, str) or not _RUN.fullmatch(name):
        return CommandVerdict("bad_argument")
    if name in present.taken:
        return CommandVerdict("run_exists", name)
    at_rest = sum(state not in GOING_ON for run, state in present.runs.items() if present.by[run] == operator)
    if len(present.runs) >= MOST_RUNS or at_rest >= MOST_OF_ONE:
        return CommandVerdict("too_many_runs", name)
    return CommandVerdict("ok", name)
