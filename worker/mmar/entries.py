"""What can become of a component of an MMAR: it is mapped, left out, or refused with advice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from worker.mmar.values import Config


class ComponentRole(StrEnum):
    """The part a component plays; a name means something only within its role."""

    TRANSFORM = "transforms"
    LOSS = "losses"
    NETWORK = "networks"
    OPTIMIZER = "optimizers"
    SCHEDULE = "learning-rate schedules"
    DATASET = "datasets and image pipelines"
    LOADER = "data loaders"
    INFERER = "inferers"
    METRIC = "metrics"
    HANDLER = "handlers"
    ENGINE = "trainers and evaluators"
    FEDERATED = "federated parts"
    ANNOTATION = "annotation and AutoML parts"


@dataclass(frozen=True, slots=True)
class Mapped:
    """Has an equal here."""

    target: str
    """What it becomes: a bare name of MONAI's, or the full name of another library's class."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Arguments that are called otherwise today."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Arguments that are left out, with why; nothing is told of one without a reason, which is taken over elsewhere."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of arguments that were not given: Clara's defaults where today's differ."""
    adapt: Callable[[Config], Config] | None = None
    """For arguments that changed in more than name; after renaming, before the defaults."""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Is not needed, because MONAI or fledge does it itself."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Has no equal; says what to use instead."""

    advice: str


Entry = Mapped | LeftOut | Refused


class NoteKind(StrEnum):
    """What a note says."""

    MAPPED = "mapped"
    LEFT_OUT = "left out"
    TO_SET = "to be set"


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that was mapped or left out, or that a site has to set."""

    kind: NoteKind
    what: str
    why: str


class InstalledNames(Protocol):
    """What the installed MONAI and torch have."""

    def find(self, role: ComponentRole, name: str) -> str | None:
        """What a configuration calls the class of this name, or None if there is none."""

    def nearest(self, role: ComponentRole, name: str) -> Sequence[str]:
        """Names of classes that read like this one."""

    def unknown(self, target: str, arguments: Collection[str]) -> Sequence[str]:
        """Those of the arguments that the class does not take."""
