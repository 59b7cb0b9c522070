"""What several commands understand in the same way: `--json`, and NAME=VALUE."""

from __future__ import annotations

import tomllib
from typing import Annotated

import typer

from protocol.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]


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
