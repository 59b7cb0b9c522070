"""What a trial is asked for, checked before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aggregator.strategy.base import MAX_BUFFER
from fledge.trial.project import PYPROJECT, read_project, table
from protocol.errors import ConfigError
from protocol.topology import AGGREGATOR

VERSIONS, BUNDLE_VERSIONS = 20, 5
BUNDLE_TRAINER, MMAR_TRAINER = "fledge.trainers.monai_bundle:bundle_trainer", "fledge.trainers.mmar:mmar_trainer"
SYNCHRONOUS = "fedavg"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    """What the command line, or `[tool.fledge.try]` of a pyproject.toml, says.

    Args:
        data: none, one that is divided, or one for each site.
        options: arguments of the factory.
        versions: how many are made; by default 20, of a bundle 5.
        out: where everything is kept.
    """

    factory: str = ""
    bundle: Path | None = None
    data: Sequence[str] = ()
    per_site: bool = False
    sites: int = 3
    alpha: float | None = None
    held_out: float = 0.2
    options: Mapping[str, object] = field(default_factory=dict)
    versions: int | None = None
    strategy: str = SYNCHRONOUS
    seed: int = 0
    compare: bool = True
    report: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.factory) == (self.bundle is not None):
            raise ConfigError(
                "name your training code as module:factory, for example mytask:trainer, or a bundle by --bundle DIR"
            )
        if not 1 <= self.sites <= MAX_BUFFER:
            raise ConfigError(f"--sites is from 1 to {MAX_BUFFER}, not {self.sites}")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"--alpha is above 0 (0.1: very uneven, 100: nearly even), not {self.alpha:g}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"--held-out is a share of the data between 0 and 1, not {self.held_out:g}")
        if self.seed < 0:
            raise ConfigError(f"--seed is 0 or more, not {self.seed}")

    @property
    def last(self) -> int:
        """The last version."""
        return self.versions or (VERSIONS if self.bundle is None else BUNDLE_VERSIONS)

    def places(self) -> dict[str, str]:
        """The data, absolute, by the name of the site that has them; one under any name is for all of them.

        Raises:
            ConfigError: one is not there, or a name would be two sites'.
        """
        paths = [Path(each).expanduser().absolute() for each in self.data]
        for given, path in zip(self.data, paths, strict=True):
            if not path.exists():
                raise ConfigError(f"--data {given}: there is no such file or folder")
        if self.per_site:
            if len(paths) != 1 or not paths[0].is_dir():
                raise ConfigError("--per-site goes with one --data, a folder with an entry for each site")
            paths = sorted(path for path in paths[0].iterdir() if not path.name.startswith("."))
            if len(paths) < 2:
                raise ConfigError(f"--per-site: {self.data[0]} has {len(paths)} entries; it needs one for each site")
        if len(paths) > MAX_BUFFER:
            raise ConfigError(f"there are {len(paths)} sites; at most {MAX_BUFFER} take part")
        found: dict[str, str] = {}
        for path in paths:
            name = site_name(path)
            if name in found:
                raise ConfigError(f"{found[name]} and {path} would both be the site {name!r}; call one differently")
            found[name] = str(path)
        return found


def site_name(path: Path) -> str:
    """A site's name made of where its data lie: that of the file or folder, as far as names of sites allow."""
    name = re.sub(r"[^a-z0-9]+", "-", path.name.partition(".")[0].lower()).strip("-")[:32].strip("-")
    return f"{name or 'site'}-1"[:32] if name in ("", AGGREGATOR) else name


class _ProjectOptions(BaseModel):
    """`[tool.fledge.try]` of a pyproject.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    factory: str = ""
    bundle: Path | None = None
    data: str | tuple[str, ...] = ()
    per_site: bool = False
    sites: int = 3
    alpha: float | None = None
    held_out: float = 0.2
    options: dict[str, Any] = {}  # the factory looks at every value
    versions: Annotated[int, Field(ge=1)] | None = None
    strategy: str = SYNCHRONOUS
    seed: int = 0


def asked(given: Mapping[str, Any], folder: Path) -> TrialOptions:  # values as TrialOptions has them
    """What the command line gives, and where it says nothing what the project in `folder` says.

    A factory or bundle on the command line is another trial than the project's: then only what was given counts.

    Raises:
        ConfigError: something is wrong in one of the two.
    """
    if "factory" in given or "bundle" in given:
        return TrialOptions(**given)
    try:
        project = _ProjectOptions.model_validate(dict(table(read_project(folder), "tool", "fledge", "try")))
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        raise ConfigError(f"{folder / PYPROJECT}: [tool.fledge.try] {name}: {wrong['msg']}") from error
    values = {**project.model_dump(), **given}
    if isinstance(values["data"], str):
        values["data"] = (values["data"],)
    return TrialOptions(**values)
