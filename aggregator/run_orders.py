"""The rules about orders that concern runs and published models: which run is meant, what speaks against them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from aggregator import lifecycle
from aggregator.catalogue import Catalogue
from aggregator.order_events import CommandArrived
from protocol.codec import is_word
from protocol.messages import RunState

ABOUT_RUNS = frozenset(
    {*lifecycle.COMMANDS, "run.create", "run.clone", "run.offer", "run.delete", "model.export", "model.publish"}
)
PREPARED = frozenset({"run.create", "run.clone", "run.offer", "model.export", "model.publish", "model.card"})
"""Orders that take a while: what they make is made ready first, and stands only once the rules have taken it."""
_GOES_ON_AGAIN = ("run.start", "run.resume")
TEXTS: Mapping[str, str] = {
    **{f"run_{state.value}": f"the run is {state.value}" for state in RunState},
    "unknown_run": "there is no such run; `run list` shows which there are",
    "no_run": "there is no run yet; `run create` makes one",
    "which_run": "several runs come into question; name one of them, `run list` shows which there are",
    "run_exists": "a run of this name is there, or was: names are not used twice",
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
    if event.command == "run.create":
        return _new(arguments.get("run"), present)
    run, why = lifecycle.choose(arguments.get("run"), present.runs)
    if why != "ok":
        return Verdict(why)
    state = present.runs[run]
    if event.command == "run.clone":
        return Verdict(_new(arguments.get("as"), present).why, run)
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
    if event.command in _GOES_ON_AGAIN and run in present.complete:
        return Verdict("run_complete", run)
    return Verdict("ok", run)


def about_models(event: CommandArrived, catalogue: Catalogue) -> str:
    """What speaks against an order about published models, in a word."""
    name, channel = event.arguments.get("name"), event.arguments.get("channel")
    if event.command == "model.promote":
        if not is_word(channel):
            return "bad_argument"
        if not catalogue.is_model(str(name)):
            return "unknown_model"
        return "name_taken" if catalogue.is_model(str(channel)) else "ok"
    if event.command == "model.card" and not catalogue.resolve(str(name)):
        return "unknown_model"
    if event.command == "model.rollback" and catalogue.before(str(channel)) is None:
        return "no_model_before"
    return "ok"


def _new(name: object, present: Present) -> Verdict:
    if not is_word(name):
        return Verdict("bad_argument")
    return Verdict("run_exists" if name in present.taken else "ok", str(name))
