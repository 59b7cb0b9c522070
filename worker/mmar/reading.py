"""An MMAR's files, read with bounds; none of them is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol import limits
from protocol.errors import ConfigError

TRAIN = "config_train.json"
ENVIRONMENT = "environment.json"
_LARGEST = 1024 * 1024
_TEXT = (".md", ".txt")


@dataclass(frozen=True)
class Mmar:
    """An MMAR's configuration as it stands in its files, and its code."""

    name: str
    train: Mapping[str, Any]
    environment: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    inference: Mapping[str, Any] | None
    server: Mapping[str, Any] | None
    client: Mapping[str, Any] | None
    custom: Mapping[str, bytes]
    """Files of `custom`, by their path in it."""
    docs: Mapping[str, bytes]


def is_mmar(folder: Path) -> bool:
    """Whether a folder is an MMAR and no MONAI bundle."""
    return (folder / "config" / TRAIN).is_file() and not (folder / "configs").exists()


def read_mmar(root: Path, *, config: str = TRAIN, given: Mapping[str, Any] | None = None) -> Mmar:
    """Read an MMAR.

    Args:
        config: the training configuration's file name in `config`, such as `config_finetune.json`.
        given: what goes before variables of the environment and top-level values of the configuration (Clara's
            `--set`).

    Raises:
        ConfigError: it is no MMAR, or a file is damaged or too large.
    """
    if not is_mmar(root):
        raise ConfigError(f"{root} is no MMAR: config/{TRAIN} is not there")
    if Path(config).name != config:
        raise ConfigError(f"{config!r} is no file name; name a file in {root / 'config'}")
    train = _json(root / "config" / config)
    if train is None:
        raise ConfigError(f"{root / 'config' / config} is not there; name a training configuration of the MMAR")
    more = dict(given or {})
    read = {
        key: _json(root / "config" / f"config_{name}.json")
        for key, name in (
            *(("validation", "validation"), ("inference", "inference")),
            *(("server", "fed_server"), ("client", "fed_client")),
        )
    }
    return Mmar(
        name=root.resolve().name,
        train={**train, **more},
        environment={**(_json(root / "config" / ENVIRONMENT) or {}), **more},
        custom=dict(_files(root / "custom", ())),
        docs=dict(_files(root / "docs", _TEXT)),
        **read,
    )


def pretrained(root: Path, environment: Mapping[str, Any]) -> Path | None:
    """The file of trained weights that an MMAR begins with, if it is there: PRETRAIN_WEIGHTS_FILE, else MMAR_CKPT."""
    for name in ("PRETRAIN_WEIGHTS_FILE", "MMAR_CKPT"):
        text = environment.get(name)
        if isinstance(text, str) and text.endswith((".pt", ".pth")) and (root / text).is_file():
            return root / text
    return None


def _json(path: Path) -> dict[str, Any] | None:
    """A file's mapping, or None if there is no such file."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the MMAR has to be readable") from error
    if len(raw) > _LARGEST:
        raise ConfigError(f"{path} is larger than {_LARGEST // 1024} KiB; that is no configuration")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid JSON ({error}); correct it") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; it has to be a mapping")
    return found


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """A folder's files by their path in it, without what Python compiled; only some `endings`, if there are any."""
    left, count = limits.CODE_UNPACKED, 0
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(names):
            path = Path(above) / name
            if name.startswith(".") or name.endswith(".pyc") or (endings and path.suffix.lower() not in endings):
                continue
            if path.is_symlink() or not path.is_file():
                raise ConfigError(f"{path} is no plain file; put the file itself there")
            count, left = count + 1, left - path.stat().st_size
            if count > limits.CODE_FILES or left < 0:
                raise ConfigError(f"{folder} is too large to travel; keep data and weights out of it")
            yield path.relative_to(folder).as_posix(), path.read_bytes()
