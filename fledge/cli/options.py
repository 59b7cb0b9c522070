"""What several commands understand in the same way: `--json`, `--also`, and NAME=VALUE."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from worker.data.dicom_kinds import Beside

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]

Also = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="Take DICOM of this kind too: localizer, derived or secondary-capture."),
]
DropDuplicates = Annotated[bool, typer.Option("--drop-duplicates", help="Leave out images that one patient has twice.")]


def taken(also: Iterable[str] | None) -> frozenset[Beside]:
    """The kinds that `--also` names.

    Raises:
        ConfigError: one is none.
    """
    from worker.data.dicom_kinds import TAKEN

    if unknown := sorted(set(also or ()) - TAKEN.keys()):
        raise ConfigError(f"--also {unknown[0]!r}: say {', '.join(TAKEN)}")
    return frozenset(TAKEN[name] for name in also or ())


def the_run(run: str | None, old: str | None) -> str:
    """The run that is named by its place or, as once, by `--run`.

    Raises:
        ConfigError: it is named in neither way, or in both.
    """
    if run is not None and old is not None:
        raise ConfigError(f"the run is named twice, {run} and {old}; name it once, without --run")
    if (name := old if run is None else run) is None:
        raise ConfigError("for which run? name it")
    return name


def named_value(text: str, option: str) -> tuple[str, object]:
    """A name and a value as TOML would read it; text that TOML cannot read is a string.

    Raises:
        ConfigError: it is not NAME=VALUE; names the `option` it was given with.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{option} {text!r}: write NAME=VALUE")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
