"""The rules about orders that concern runs and published models: which run is meant, what speaks against them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aggregator import lifecycle
from aggregator.catalogue import Catalogue
from aggregator.order_events import CommandArrived
from protocol.codec import is_word
from protocol.messages import GOING_ON, RunState

ABOUT_RUNS = frozenset(
    {*lifecycle.COMMANDS, "run.create", "run.clone", "run.offer", "run.delete", "model.export", "model.publish"}
)
PREPARED = frozenset({"run.create", "run.clone", "run.offer", "model.export", "model.publish", "model.card"})
"""Orders that take a while: what they make is made ready first, and stands only once the rules have taken it."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}")
MOST_GOING_ON = 64
"""Runs that a head tells."""
MOST_RUNS = 256
"""Runs there may be at a time; each takes some memory for as long as it is there."""
MOST_OF_ONE = 32
"""Runs of one operator that do not go on."""
_GOES_ON_AGAIN = ("run.start", "run.resume")
TEXTS: Mapping[str, str] = {
    **{f"run_{state.value}": f"the run is {state.value}" for state in RunState},
    "unknown_run": "there is no such run; `run list` shows which there are",
    "no_run": "there is no run yet; `run create` makes one",
    "which_run": "several runs come into question; name one of them, `run list` shows which there are",
    "run_exists": "a run of this name is there, or was: names are not used twice",
    "too_many_runs": "as many runs are there, or go on, as this aggregator takes; stop or delete one first",
    "busy": "this aggregator is still at work on an order of yours that takes time; give this one when it has answered",
    "run_complete": "the run has reached one of the ends in its settings; clone it with others to train further",
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
    """What orders are judged by."""

    sites: Collection[str]
    runs: Mapping[str, RunState] = field(default_factory=dict)
    taken: Collection[str] = ()
    """Names that no new run may have."""
    by: Mapping[str, str] = field(default_factory=dict)
    """Who brought each run; empty: nobody from afar."""
    busy: Collection[str] = ()
    """Operators whose last order that takes time is still being worked on."""
    complete: Collection[str] = ()
    """Runs that have reached one of the ends in their settings."""
    catalogue: Catalogue


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok` or the fixed word that says why not, and the run an order is for."""

    why: str
    run: str = ""

    @property
    def text(self) -> str:
        """The word in a sentence, if there is one."""
        return TEXTS.get(self.why, "")


def about_run(event: CommandArrived, present: Present) -> Verdict:
    """What speaks against an order about a run."""
    arguments = event.arguments
    if event.command in PREPARED and event.operator in present.busy:
        return Verdict("busy")
    if event.command == "run.create":
        return _new(arguments.get("run"), present, event.operator)
    run, why = lifecycle.choose(arguments.get("run"), present.runs)
    if why != "ok":
        return Verdict(why)
    state = present.runs[run]
    if event.command == "run.clone":
        return Verdict(_new(arguments.get("as"), present, event.operator).why, run)
    if event.command == "run.delete" and state not in lifecycle.AT_REST:
        return Verdict(f"run_{state.value}", run)
    if event.command == "model.publish":
        name = arguments.get("name")
        if not is_word(name):
            return Verdict("bad_argument", run)
        return Verdict("name_taken" if present.catalogue.has(str(name)) else "ok", run)
    wanted = lifecycle.COMMANDS.get(event.command)
    if wanted is not None and state not in wanted[1]:
        return Verdict(f"run_{state.value}", run)
    going_on = sum(each in GOING_ON for each in present.runs.values())
    if event.command in _GOES_ON_AGAIN and state not in GOING_ON and going_on >= MOST_GOING_ON:
        return Verdict("too_many_runs", run)
    if event.command in _GOES_ON_AGAIN and run in present.complete:
        return Verdict("run_complete", run)
    return Verdict("ok", run)


def about_models(event: CommandArrived, catalogue: Catalogue) -> str:
    """What speaks against an order about published models, in a word."""
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


def _new(name: object, present: Present, operator: str) -> Verdict:
    if not isinstance(name, str) or not _RUN.fullmatch(name):
        return Verdict("bad_argument")
    if name in present.taken:
        return Verdict("run_exists", name)
    at_rest = sum(state not in GOING_ON for run, state in present.runs.items() if present.by[run] == operator)
    if len(present.runs) >= MOST_RUNS or at_rest >= MOST_OF_ONE:
        return Verdict("too_many_runs", name)
    return Verdict("ok", name)
