"""`fledge ctl registry …`: bring the aggregator a list of members that the root has signed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer

from fledge.ctl.options import command, group, session_of
from fledge.ctl.session import Session
from protocol.errors import ConfigError
from protocol.limits import BODY

app = group("The list of members, signed by the root.")

_LINE = 1000
"""Characters of base64 in one line of a command."""
_LARGEST = BODY * 3 // 4 - 4096
"""Bytes of a registry that fit into a command."""


@command(app, "put")
def put(context: typer.Context, file: Annotated[Path, typer.Argument(help="The newer registry.bin.")]) -> int:
    """Put a newer list of members, signed by the root, in force."""
    return put_in_force(session_of(context), file)


def put_in_force(session: Session, file: Path) -> int:
    """Bring the aggregator a newer list of members, show its answer, and return the exit code.

    Raises:
        ConfigError: the file cannot be read, or is too large for a message.
    """
    try:
        with file.open("rb") as opened:
            record = opened.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; name the registry.bin that the root has signed") from error
    if len(record) > _LARGEST:
        raise ConfigError(
            f"{file} is too large for a message; put it beside aggregator.toml and restart the aggregator"
        )
    text = base64.b64encode(record).decode("ascii")
    lines = tuple(text[at : at + _LINE] for at in range(0, len(text), _LINE))
    return session.send("registry.put", {"record": lines})
