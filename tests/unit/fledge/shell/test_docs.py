from __future__ import annotations

import re
from pathlib import Path

import fledge.cli.app  # noqa: F401  # which adds the shell to the commands of `fledge ctl`
from fledge.shell.clara import CLARA
from fledge.shell.context import own_commands
from protocol.commands import COMMANDS

PAGE = Path(__file__).parents[4] / "docs" / "ctl.md"


def own_rows() -> list[str]:
    """Every command of `fledge ctl` as a row of the page."""
    return [
        f"| `{name}` | {about}{' *Asks first.*' if _dangerous(name) else ''} |"
        for first, each in own_commands().items()
        for name, about in ((f"{first} {second}".strip(), about) for second, about in each.items())
    ]


def clara_rows() -> list[str]:
    """Every command of Clara's as a row of the page."""
    return [
        f"| `{usage}` | {ours} |"
        for usage, ours in ((command.usage.replace("|", "\\|"), command.ours.replace("|", "\\|")) for command in CLARA)
    ]


def _dangerous(name: str) -> bool:
    order = COMMANDS.get(name.replace(" ", "."))
    return order is not None and order.dangerous


def test_the_page_tells_every_command_and_no_other() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| `[a-z]", line)]
    assert rows == own_rows() + clara_rows()


def test_the_page_tells_every_exit_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| ([0-9]+) \|", text, re.MULTILINE) == ["0", "1", "2", "4", "130"]
