"""What a hospital allows on its own machine, by any order: `policy.toml`. Every key narrows; none widens anything.

Pure decisions: the file is read once, when the worker starts.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from broker.runtime.settings import parse_toml
from protocol.codec import Word, is_word
from protocol.errors import ConfigError, TrainingError, Unauthorized
from protocol.messages import Named

_LIMIT = 64 * 1024
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_SUFFIXES = "|".join(
    (
        *("nii", "gz", "dcm", "dicom", "ima", "img", "hdr", "nrrd", "nhdr", "mha", "mhd", "mgz", "mnc", "svs", "ndpi"),
        *("edf", "bam", "vcf", "png", "jpe?g", "bmp", "gif", "tiff?", "avi", "mp4", "csv", "tsv", "xlsx?", "docx?"),
        *("json", "jsonl", "xml", "txt", "log", "pdf", "zip", "tar", "npy", "npz", "pkl", "pt", "pth", "ckpt", "h5"),
        *("hdf5", "parquet", "mat", "db", "sqlite"),
    )
)
DATA_FILE = re.compile(rf"\.(?:{_SUFFIXES})(?![A-Za-z0-9])", re.IGNORECASE)
"""How names of files end that may hold or name what is private."""
_FILE = re.compile(rf"[/\\]|{DATA_FILE.pattern}", re.IGNORECASE)
_TAG = re.compile(r"[0-9]+(?:\.[0-9]+){3,}|(?<![0-9A-Fa-f])[0-9A-Fa-f]{4}[,.:+_-][0-9A-Fa-f]{4}(?![0-9A-Fa-f])")
"""Identifiers as DICOM writes them, and its tags: group and element."""


class Bound(BaseModel):
    """How far a filter's parameter may go."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: object) -> bool:
        """Whether a parameter is a number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        said = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{words} {limit:g}" for words, limit in said if limit is not None) or "any number"


class Compulsory(BaseModel):
    """A privacy filter that has to be applied; every other key bounds one of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Bound]
    name: Word

    def met_by(self, filter: Named) -> bool:
        """Whether this filter, with these parameters, is enough."""
        bounds = (self.__pydantic_extra__ or {}).items()
        return filter.name == self.name and all(bound.holds(filter.parameters.get(key)) for key, bound in bounds)

    def __str__(self) -> str:
        bounds = ", ".join(f"{key} {bound}" for key, bound in (self.__pydantic_extra__ or {}).items())
        return f"{self.name!r} with {bounds}" if bounds else repr(self.name)


class SitePolicy(BaseModel):
    """What this site allows; what a key does not mention is left to the rights in the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    operators: tuple[Word, ...] | None = None
    """Who may order anything here; empty: no operator."""
    code: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=["64 hexadecimal digits"])], ...] | None = None
    """SHA-256 digests, in hex, of training code that has been looked at; other code is not run."""
    filters: tuple[Compulsory, ...] = ()
    """Privacy filters that have to be in the worker's chain."""
    metrics: tuple[str, ...] | None = None
    """Names of metrics (or patterns with `*`) that may leave the site; without it every name that looks harmless."""
    hours: Annotated[str, Field(pattern=rf"^{_CLOCK}-{_CLOCK}$", examples=["20:00-06:00"])] | None = None
    """When trainings may begin, in local time, such as 20:00-06:00; the same time twice: always."""
    bandwidth_kbit: Annotated[int, Field(ge=8)] | None = None
    """Kilobits per second for what is uploaded to the store."""
    ask_first: bool = False
    """A run waits until a person at the hospital says `fledge site approve RUN`."""
    statistics: bool = False
    """Operators may ask for the figures that the hospital shared with `fledge data stats --share`."""

    def opens_in(self, local: datetime) -> float:
        """Seconds until a training may begin; 0 if it may now."""
        if self.hours is None:
            return 0.0
        begin, end = (_minutes(text) for text in self.hours.split("-"))
        minute = local.hour * 60 + local.minute
        if begin == end or (begin <= minute < end if begin < end else not end <= minute < begin):
            return 0.0
        opening = local.replace(hour=begin // 60, minute=begin % 60, second=0, microsecond=0)
        if opening <= local:
            opening += timedelta(days=1)
        return (opening - local).total_seconds()

    def may_order(self, operator: str, order: str) -> None:
        """Let pass what the site takes from an operator who has the right to it.

        Raises:
            Unauthorized: this site does not.
        """
        if self.operators is not None and operator not in self.operators:
            raise Unauthorized(
                f"this site's own policy does not let {operator} order {order}; "
                "the hospital would have to add the name to `operators` in its policy.toml"
            )

    def check_code(self, digest: str) -> None:
        """Let training code run that has been looked at; `digest` is the SHA-256 of it, in hex.

        Raises:
            ConfigError: the site's policy names digests, but not this one.
        """
        if self.code is not None and digest not in self.code:
            raise ConfigError(
                f"the training code has the digest {digest}, which policy.toml does not list; "
                "have the code looked at, then add the digest to `code` there"
            )

    def check_filters(self, chain: Sequence[Named]) -> None:
        """Let a chain of privacy filters be used that does what the policy demands.

        Raises:
            ConfigError: a compulsory filter is missing or too weak, or a parameter looks like a file's name: every
                update tells the filters' parameters.
        """
        for needed in self.filters:
            if not any(needed.met_by(each) for each in chain):
                raise ConfigError(
                    f"policy.toml demands the privacy filter {needed}; "
                    "add it to `filters` in worker.toml, or raise what stands there"
                )
        for each in chain:
            for key, value in each.parameters.items():
                if isinstance(value, str) and _FILE.search(value):
                    raise ConfigError(
                        f"privacy filter {each.name!r}: {key} looks like a file's name, and every update tells the "
                        "filters' parameters; have the filter take it from somewhere else"
                    )

    def check_metrics(self, names: Iterable[str]) -> None:
        """Let metrics leave the site whose names say nothing of a patient or a file.

        Raises:
            TrainingError: a name looks like a file, a path or a DICOM tag, or is not among those allowed.
        """
        for name in names:
            if wrong := private_name(name):
                raise TrainingError(
                    f"metric {name!r} {wrong}, and names of metrics leave the site; "
                    "have the trainer report sums over all examples under fixed names"
                )
            if self.metrics is not None and not any(fnmatchcase(name, pattern) for pattern in self.metrics):
                raise TrainingError(f"metric {name!r} may not leave this site; policy.toml allows {list(self.metrics)}")

    def check_statistics(self, classes: Iterable[str]) -> None:
        """Let figures of a data set leave the site, if they may, under names of classes that say nothing of a patient.

        Raises:
            ConfigError: the policy does not allow it, or a name looks like a file, a path or a DICOM tag.
        """
        if not self.statistics:
            raise ConfigError(
                "this site's policy lets no figures of its data leave; whoever decides here would have to write "
                "`statistics = true` into policy.toml"
            )
        for name in classes:
            if wrong := private_name(name):
                raise ConfigError(
                    f"class {name!r} {wrong}, and names of classes leave the site; rename it in the datalist"
                )


OPEN = SitePolicy()
"""Everything is allowed that the registry allows."""


def read_policy(path: Path, *, needed: bool = False) -> SitePolicy:
    """Read and check `policy.toml`; without the file everything is allowed, unless it is `needed`.

    Raises:
        ConfigError: it cannot be read, other users may change it, it is not TOML, or a value is wrong; says which.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_LIMIT + 1)
    except FileNotFoundError:
        if not needed:
            return OPEN
        raise ConfigError(f"{path}: there is no such policy; correct `policy` in worker.toml, or write it") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; the worker does not start without its policy") from error
    if len(raw) > _LIMIT:
        raise ConfigError(f"{path}: longer than {_LIMIT} bytes; is it the right file?")
    if mode & stat.S_IWOTH:
        raise ConfigError(f"{path} can be changed by anybody (mode {mode:04o}); run: chmod o-w {path}")
    return parse_toml(raw, path, SitePolicy)


def private_name(name: str) -> str:
    """What a name looks like that keeps it from leaving the site; nothing if it may."""
    if not is_word(name):
        return "is not 1 to 64 letters, digits and the characters . _ : + -"
    return "looks like a file, a path or an identifier" if _FILE.search(name) or _TAG.search(name) else ""


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
