"""Who plays in a trial: a trainer for each site with its share of the data, and those that measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fledge.trial import folders
from fledge.trial.division import Division, Terms, divide
from fledge.trial.source import Source
from protocol.errors import ConfigError
from protocol.spec import ModelSpec
from worker.api.division import Divisible, Holdings
from worker.api.trainer import Trainer
from worker.data.datalist import DATASET
from worker.trainers.initial import HasModel

_SITE = "site"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSite:
    """One site of the trial."""

    name: str
    trainer: Trainer
    options: Mapping[str, object]
    """Of its factory, as they would stand in `worker.toml`."""
    examples: int | None
    """None: only its updates will tell."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """How many examples of each class; empty: not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """All trainers of a trial; each holds a model of its own."""

    sites: Sequence[TrialSite]
    measuring: Sequence[Trainer]
    """What a model is measured by: the mean over them, by examples. The first one's model is version 0."""
    pooled: Trainer | None
    """Holds all sites' data; one of `measuring`, or None where data cannot be put together."""
    held_out: str
    """What is measured on, in words."""

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""
        first = self.measuring[0]
        if not isinstance(first, HasModel):
            raise ConfigError(f"a {type(first).__name__} does not offer its model")
        return first.spec

    @property
    def values(self) -> int:
        """How many numbers the model has."""
        return sum(tensor.elements for tensor in self.spec.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterSetup:
    """What a roster is made of.

    Args:
        data: none: what the factory has by itself; one: divided; several: each a site's own, by site name.
        place: an empty folder for what has to be written.
    """

    source: Source
    options: Mapping[str, object]
    data: Mapping[str, str]
    terms: Terms
    place: Path


def assemble(setup: RosterSetup) -> Roster:
    """Make every trainer.

    Raises:
        ConfigError: the data cannot be divided like that, or the factory fails.
    """
    if len(setup.data) > 1:
        return _each_its_own(setup)
    options, folder = dict(setup.options), None
    if setup.data:
        path = next(iter(setup.data.values()))
        options[_data_parameter(setup)] = path
        folder = Path(path)
    elif needed := setup.source.needs(options):
        raise ConfigError(
            f"{setup.source.name} needs {', '.join(needed)}: give the data by --data PATH, and other arguments by "
            "--option NAME=VALUE"
        )
    if folder is not None and folders.is_listed(folder):
        return _by_list(setup, folder)
    return _by_example(setup, options)


def _data_parameter(setup: RosterSetup) -> str:
    name = setup.source.data_parameter(setup.options)
    if name is None:
        raise ConfigError(
            f"{setup.source.name} takes no data ({setup.source.shown}); leave out --data, or give the function an "
            "argument called data"
        )
    return name


def _by_example(setup: RosterSetup, options: Mapping[str, object]) -> Roster:
    """One data set that every site's trainer loads, and of which each keeps its share."""
    terms = setup.terms
    whole = _made(setup, options)
    if not isinstance(whole, Divisible):
        raise ConfigError(
            f"{setup.source.name} makes a {type(whole).__name__}, whose data cannot be divided; give each site its "
            "own (--data A --data B), or let the class have `holdings`, `take` and `join` as fledge.TorchTrainer has"
        )
    known = whole.holdings()
    classes = _classes_for(known, terms, setup.source)
    dealt = _divided(known, terms, classes)
    sites = []
    for index, share in enumerate(dealt.shares):
        trainer = _made(setup, options)
        if not isinstance(trainer, Divisible) or trainer.holdings().examples != known.examples:
            raise ConfigError(
                f"{setup.source.name} gives another number of examples every time it is called "
                f"({setup.source.shown}); let its data be the same for the same arguments"
            )
        trainer.take(share, ())
        counted = _counted(classes, share)
        sites.append(
            TrialSite(
                name=f"{_SITE}-{index + 1}", trainer=trainer, options=options, examples=len(share), classes=counted
            )
        )
    whole.take(dealt.pooled, dealt.held_out)
    held_out = f"{len(dealt.held_out)} examples that no site has" if dealt.held_out else "what evaluate_on holds"
    return Roster(sites=sites, measuring=(whole,), pooled=whole, held_out=held_out)


def _classes_for(known: Holdings, terms: Terms, source: Source) -> Sequence[Hashable] | None:
    if terms.alpha is None:
        return None
    classes = known.classes()
    if classes is None:
        raise ConfigError(
            f"--alpha divides by class, and the targets of {source.name} are no classes; leave it out, or give the "
            "dataset an attribute `targets` with the class of every example"
        )
    return classes


def _divided(known: Holdings, terms: Terms, classes: Sequence[Hashable] | None) -> Division:
    if known.evaluates:
        terms = Terms(sites=terms.sites, seed=terms.seed, alpha=terms.alpha, held_out=0.0)
    return divide(known.examples, terms, classes=classes, groups=known.groups)


def _counted(classes: Sequence[Hashable] | None, share: Sequence[int]) -> dict[str, int]:
    if classes is None:
        return {}
    counts = Counter(classes[index] for index in share)
    return {str(name): counts[name] for name in sorted(counts, key=lambda name: (str(type(name)), name))}


def _each_its_own(setup: RosterSetup) -> Roster:
    """Every site has data of its own, of which a part is held out where its trainer does not do that itself."""
    parameter = _data_parameter(setup)
    if setup.terms.alpha is not None:
        raise ConfigError("--alpha divides one data set; leave it out where every site has its own --data")
    sites, measuring = [], []
    for name, path in setup.data.items():
        options = {**setup.options, parameter: path}
        trainer, measure = (_made(setup, options) for _ in range(2))
        examples = None
        known = _holdings(trainer)
        if known is not None and isinstance(trainer, Divisible) and isinstance(measure, Divisible):
            dealt = _divided(known, _alone(setup.terms), None)
            for each in (trainer, measure):
                each.take(dealt.pooled, dealt.held_out)
            examples = len(dealt.pooled)
        sites.append(TrialSite(name=name, trainer=trainer, options=options, examples=examples))
        measuring.append(measure)
    return Roster(
        sites=sites, measuring=measuring, pooled=_joined(measuring), held_out="a part of every site's data, held out"
    )


def _holdings(trainer: Trainer) -> Holdings | None:
    """What a trainer trains on; None if that cannot be divided, such as a dataset that is a stream."""
    try:
        return trainer.holdings() if isinstance(trainer, Divisible) else None
    except ConfigError:
        return None


def _alone(terms: Terms) -> Terms:
    return Terms(sites=1, seed=terms.seed, held_out=terms.held_out)


def _joined(trainers: Sequence[Trainer]) -> Trainer | None:
    first, alike = trainers[0], [each for each in trainers if isinstance(each, Divisible) and _holdings(each)]
    if len(alike) < len(trainers) or len({type(each) for each in trainers}) > 1:
        return None
    alike[0].join(alike[1:])
    return first


def _by_list(setup: RosterSetup, folder: Path) -> Roster:
    """A folder with a dataset.json: each site gets a folder of its own with a share of the list."""
    parameter = _data_parameter(setup)
    dealt = folders.divide_list(folder, setup.terms, setup.place)
    whole = _of_folder(setup, parameter, dealt.pooled, dealt.held_out)
    sites = []
    for index, share in enumerate(dealt.shares):
        options = {**setup.options, parameter: str(share.folder)}
        trainer = _of_folder(setup, parameter, share)
        sites.append(TrialSite(name=f"{_SITE}-{index + 1}", trainer=trainer, options=options, examples=share.images))
    held_out = f"{dealt.held_out} image{'s' if dealt.held_out > 1 else ''} that no site trains on"
    return Roster(sites=sites, measuring=(whole,), pooled=whole, held_out=held_out)


def _of_folder(setup: RosterSetup, parameter: str, share: folders.SiteFolder, held_out: int | None = None) -> Trainer:
    """A folder's trainer, unless it tells that it trains on other images than the folder's list has.

    A configuration may look for images by a pattern: then every site would have all of them.
    """
    made = _made(setup, {**setup.options, parameter: str(share.folder)})
    sizes = getattr(made, "sizes", (None, None))
    known = made.holdings().examples if isinstance(made, Divisible) else sizes[0]
    if known not in (None, share.images) or (held_out is not None and sizes[1] not in (None, 0, held_out)):
        raise ConfigError(
            f"the training does not follow the lists of {DATASET}: it has {known} images where {share.images} "
            "are listed for it, perhaps because it looks for files by a pattern; give each site a folder of its own "
            "(--data A --data B)"
        )
    return made


def _made(setup: RosterSetup, options: Mapping[str, object]) -> Trainer:
    return setup.source.make(options, setup.terms.seed)
