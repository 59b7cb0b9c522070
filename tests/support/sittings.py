"""Sittings at an operator's console, with what it shows line by line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from fledge.cli.app import ctl as app
from tests.support.operator_hub import Hub

DONE = re.compile(r"Done \[[0-9]+ usecs\] [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+")


def shell(
    folder: Path, hub: Hub, *lines: str, piped: str | None = None, options: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Exit code and output of a sitting; every line ended with how long it took."""
    given = [word for line in lines for word in ("-c", line)]
    done = CliRunner().invoke(app, ["--kit", str(folder), "shell", *options, *given], obj=hub.open, input=piped)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    shown = done.stdout.splitlines()
    assert shown.pop(0) == "alice: help lists the commands, bye ends."
    assert sum(bool(DONE.fullmatch(line)) for line in shown) == sum(line.startswith("> ") for line in shown)
    return done.exit_code, shown


def answer(folder: Path, hub: Hub, line: str, *, code: int = 0) -> list[str]:
    """What one line shows, without the line itself and its end."""
    ended, shown = shell(folder, hub, line, options=["--yes"])
    assert ended == code, shown
    assert shown[0] == f"> {line}"
    assert DONE.fullmatch(shown[-1])
    return shown[1:-1]


def cells(line: str) -> list[str]:
    """The cells of a table's row."""
    return [cell.strip() for cell in line.strip("|").split("|")]
