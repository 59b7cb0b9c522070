"""What the commands have in common: `--json`, the exit code, and how sites are chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from fledge.ctl.session import Session
from protocol.errors import ConfigError


def kit_of(context: typer.Context) -> Path:
    """The kit that the command line names, also while it is only being completed."""
    given, above = context.params, context.parent
    while above is not None and "kit" not in given:
        given, above = above.params, above.parent
    return Path(given.get("kit") or ".")


def complete_site(context: typer.Context, incomplete: str) -> list[str]:
    """Sites for the shell's completion, from the kit's own list of members: no server is asked."""
    from fledge.operator.members import site_names

    return [name for name in site_names(kit_of(context)) if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
OneSite = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.", autocompletion=complete_site)]
Sites = Annotated[list[str] | None, typer.Argument(metavar="SITE", help="Sites by name.", autocompletion=complete_site)]
AlsoSites = Annotated[
    list[str] | None,
    typer.Option("--site", metavar="SITE", help="The same as an option.", autocompletion=complete_site),
]
Everywhere = Annotated[bool, typer.Option("--all", help="Every site of the federation.")]
OneRun = Annotated[str | None, typer.Argument(metavar="RUN", help="The run's name; default: the one that goes on.")]
OldRun = Annotated[str | None, typer.Option("--run", hidden=True, help="As RUN, which was once named so.")]
ThisRun = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")]


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """Register a function as a command that also takes `--json`; what it returns is the exit code."""

    def register(function: Callable[..., int]) -> Callable[..., None]:
        @wraps(function)
        def wrapper(context: typer.Context, *args: object, json: bool = False, **given: object) -> None:
            session_of(context).as_json |= json
            if code := function(context, *args, **given):
                raise typer.Exit(code)

        # Typer reads the options from signature and annotations.
        signature = inspect.signature(function, eval_str=True)
        extra = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
        parameters = [*signature.parameters.values(), extra]
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        app.command(name)(wrapper)
        return wrapper

    return register


def group(about: str) -> typer.Typer:
    """A group of commands, to be added under its name."""
    return typer.Typer(help=about, no_args_is_help=True)


def session_of(context: typer.Context, yes: bool = False) -> Session:
    """The sitting that a command belongs to; with `yes` no name is asked for again.

    Raises:
        ConfigError: the command was called outside of one.
    """
    if not isinstance(context.obj, Session):
        raise ConfigError("this command belongs to `fledge ctl`")
    context.obj.yes |= yes
    return context.obj


def the_run(run: str | None, old: str | None) -> str | None:
    """The run that is named by its place or, as once, by `--run`.

    Raises:
        ConfigError: it is named in both ways.
    """
    if run is not None and old is not None:
        raise ConfigError(f"the run is named twice, {run} and {old}; name it once, without --run")
    return old if run is None else run


def chosen(session: Session, sites: Sequence[str] | None, also: Sequence[str] | None, everywhere: bool) -> list[str]:
    """The sites a command is for, each once.

    Raises:
        ConfigError: none was named, or names and `--all` were mixed.
    """
    found = some_sites(session, sites, also, everywhere)
    if not found:
        raise ConfigError("for which site? name one or several, or say --all")
    return found


def some_sites(
    session: Session, sites: Sequence[str] | None, also: Sequence[str] | None, everywhere: bool
) -> list[str]:
    """The sites that were named, each once, or all; none if neither was said.

    Raises:
        ConfigError: names and `--all` were mixed.
    """
    named = list(dict.fromkeys([*(sites or ()), *(also or ())]))
    if everywhere and named:
        raise ConfigError("name sites or say --all, not both")
    return session.sites() if everywhere else named
