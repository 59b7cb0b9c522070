"""docker-compose.yml and the Dockerfile as tests read them: with the defaults of their variables, without an engine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKER = ROOT / "deploy" / "docker"
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}|\$")


@cache
def raw() -> dict[str, Any]:
    """The compose file with its variables as they are written."""
    loaded = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def filled(value: Any) -> Any:
    """The same with every variable's default put in, as with an empty environment."""
    if isinstance(value, dict):
        return {key: filled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each) for each in value]
    return _VARIABLE.sub(_default, value) if isinstance(value, str) else value


def _default(found: re.Match[str]) -> str:
    if found["name"] is not None:
        return found["default"]
    assert found[0] == "$$", f"a variable without a default in {found.string!r}"
    return "$"


def services() -> dict[str, dict[str, Any]]:
    """Every service, defaults put in."""
    found = filled(raw()["services"])
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the last lines of one stage of the Dockerfile say."""

    base: str
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name, in order, each with what it inherits from an earlier one."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        base, name = re.fullmatch(r"(\S+) AS (\S+)", head).groups()
        above = found.get(base, Stage(base=base))
        user = re.findall(r"^USER (\S+)$", body, re.MULTILINE)
        found[name] = Stage(
            base=base,
            user=user[-1] if user else above.user,
            entrypoint=_words("^ENTRYPOINT", body) or above.entrypoint,
            command=_words("^CMD", body) or above.command,
            healthcheck=_words(r"^HEALTHCHECK [^\[]*CMD", body) or above.healthcheck,
        )
    return found


def _words(instruction: str, body: str) -> tuple[str, ...]:
    found = re.search(rf"{instruction} (\[.*\])$", body, re.MULTILINE)
    return tuple(json.loads(found[1])) if found else ()


def context() -> list[Path]:
    """What `COPY . .` brings into an image: the names that .dockerignore lets in, relative to the root."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*"
    return [Path(line[1:]) for line in lines if line.startswith("!")]
