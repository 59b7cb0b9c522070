"""What several commands understand in the same way: `--kit`, `--json`, `--also`, `--config-file`, and NAME=VALUE."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.ctl.options import the_run as one_run
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from worker.data.dicom_kinds import Beside

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]
ConfigFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--config-file",
        metavar="FILE",
        help="A configuration in the bundle, as for MONAI's runner; given again, they are merged in this order.",
    ),
]

Also = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="Take DICOM of this kind too: localizer, derived or secondary-capture."),
]
DropDuplicates = Annotated[bool, typer.Option("--drop-duplicates", help="Leave out images that one patient has twice.")]

SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Leave out images that cannot be used, and say of each why.")
]


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
    if (name := one_run(run, old)) is None:
        raise ConfigError("for which run? name it")
    return name


WORKER_TOML, AGGREGATOR_TOML = Path("worker.toml"), Path("aggregator.toml")
SiteConfig = Annotated[Path, typer.Option("--config", help="The site's configuration file.")]
SiteKit = Annotated[Path | None, typer.Option("--kit", help="Or: the site's kit, the folder that holds worker.toml.")]
HubConfig = Annotated[Path, typer.Option("--config", help="The aggregator's configuration file.")]
HubKit = Annotated[Path | None, typer.Option("--kit", help="Or: the hub's kit, the folder that holds aggregator.toml.")]
_OWNERS = {"worker.toml": "a site", "aggregator.toml": "the hub", "operator.toml": "an operator"}


def config_in(kit: Path | None, config: Path, default: Path) -> Path:
    """The configuration file that `--kit` or `--config` names.

    Raises:
        ConfigError: both were given, or the kit is somebody else's.
    """
    if kit is None:
        return config
    if config != default:
        raise ConfigError("give --kit or --config, not both")
    other = next((name for name in _OWNERS if (kit / name).exists()), "")
    if other and not (kit / default).exists():
        raise ConfigError(f"{kit} is the kit of {_OWNERS[other]}; this needs one of {_OWNERS[default.name]}")
    return kit / default


def server_url(given: str, option: str, variable: str) -> str:
    """The URL that an option gives, or else an environment variable, which alone may hold a login.

    Raises:
        ConfigError: neither gives one, it cannot be read, or the option holds a password.
    """
    from broker.net.urls import without_login

    url = given or os.environ.get(variable, "")
    if not url:
        raise ConfigError(f"which server? give {option} URL, or put the URL with its login into {variable}")
    _, login = without_login(given, f"{option}")
    if login is not None and login != ("guest", "guest"):  # which everybody knows, and works on this machine alone
        raise ConfigError(
            f"{option} holds a password, and everybody on this machine can read the arguments of a command: put the URL"
            f" into {variable} and leave {option} out"
        )
    return url


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
