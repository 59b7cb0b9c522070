"""`fledge ctl file …`: a look into the folder of one site's worker, as far as the site allows."""

from __future__ import annotations

from typing import Annotated

import typer

from fledge.ctl.options import OneSite, command, group, session_of

app = group("A site's own folder, one site at a time.")

Name = Annotated[str, typer.Argument(metavar="FILE", help="A text file below the worker's folder.")]
Lines = Annotated[int, typer.Option("-n", min=1, max=1024, help="How many lines.")]
Bytes = Annotated[int | None, typer.Option("-c", min=1, help="How many bytes, instead of lines.")]


@command(app, "pwd")
def pwd(context: typer.Context, site: OneSite) -> int:
    """The folder that file commands start from."""
    return session_of(context).send("file.pwd", targets=[site])


@command(app, "env")
def env(context: typer.Context, site: OneSite) -> int:
    """Names of the worker's settings in its environment."""
    return session_of(context).send("file.env", targets=[site])


@command(app, "ls")
def ls(
    context: typer.Context,
    site: OneSite,
    path: Annotated[str, typer.Argument(metavar="FOLDER", help="Below the worker's folder.")] = ".",
    everything: Annotated[bool, typer.Option("-a", help="Names that begin with a dot too.")] = False,
    long: Annotated[bool, typer.Option("-l", help="Sizes and times too.")] = False,
    by_time: Annotated[bool, typer.Option("-t", help="Newest first.")] = False,
    by_size: Annotated[bool, typer.Option("-S", help="Largest first.")] = False,
    recursive: Annotated[bool, typer.Option("-R", help="Folders below too.")] = False,
    one_by_one: Annotated[bool, typer.Option("-u", help="By time of access.")] = False,
) -> int:
    """A listing of the worker's own folder."""
    options = letters(a=everything, l=long, t=by_time, S=by_size, R=recursive, u=one_by_one)
    return session_of(context).send("file.ls", {"path": path, "options": options}, [site])


@command(app, "cat")
def cat(
    context: typer.Context,
    site: OneSite,
    file: Name,
    numbers: Annotated[bool, typer.Option("-n", help="Number every line.")] = False,
    numbers_of_text: Annotated[bool, typer.Option("-b", help="Number lines that are not empty.")] = False,
    squeeze: Annotated[bool, typer.Option("-s", help="One empty line for several.")] = False,
    tabs: Annotated[bool, typer.Option("-T", help="Show tabs as ^I.")] = False,
) -> int:
    """A text file of the worker's own folder."""
    options = letters(n=numbers, b=numbers_of_text, s=squeeze, T=tabs)
    return session_of(context).send("file.cat", {"path": file, "options": options}, [site])


@command(app, "head")
def head(context: typer.Context, site: OneSite, file: Name, lines: Lines = 10, size: Bytes = None) -> int:
    """The first lines of a text file."""
    return session_of(context).send("file.head", {"path": file, "lines": lines, "bytes": size}, [site])


@command(app, "tail")
def tail(context: typer.Context, site: OneSite, file: Name, lines: Lines = 10, size: Bytes = None) -> int:
    """The last lines of a text file."""
    return session_of(context).send("file.tail", {"path": file, "lines": lines, "bytes": size}, [site])


@command(app, "grep")
def grep(
    context: typer.Context,
    site: OneSite,
    pattern: Annotated[str, typer.Argument(help="What to look for, letter by letter.")],
    file: Name,
    numbers: Annotated[bool, typer.Option("-n", help="Number the lines.")] = False,
    any_case: Annotated[bool, typer.Option("-i", help="Capital or small, it is all the same.")] = False,
    offsets: Annotated[bool, typer.Option("-b", help="Show where in the file each line begins.")] = False,
) -> int:
    """Lines of a text file that have a text in them."""
    arguments = {"pattern": pattern, "path": file, "options": letters(n=numbers, i=any_case, b=offsets)}
    return session_of(context).send("file.grep", arguments, [site])


def letters(**options: bool) -> str:
    """The letters of the options that were given."""
    return "".join(name for name, given in options.items() if given)
