"""An MMAR's files, read with bounds; none of them is run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol import limits
from protocol.errors import ConfigError
from worker.mmar.entries import Note, NoteKind
from worker.mmar.variables import Variables

TRAIN = "config_train.json"
ENVIRONMENT = "environment.json"
_LARGEST = 1024 * 1024
_DEEPEST = 40
_WEIGHTS = (".pt", ".pth")
_TEXT = (".md", ".txt")


@dataclass(frozen=True)
class Mmar:
    """An MMAR's configuration as it stands in its files, and its code."""

    name: str
    train: Mapping[str, object]
    environment: Mapping[str, object]
    validation: Mapping[str, object] | None
    inference: Mapping[str, object] | None
    server: Mapping[str, object] | None
    client: Mapping[str, object] | None
    custom: Mapping[str, bytes]
    """Files of `custom`, by their path in it."""
    docs: Mapping[str, bytes]


def is_mmar(folder: Path) -> bool:
    """Whether a folder is an MMAR and no MONAI bundle."""
    return (folder / "config" / TRAIN).is_file() and not (folder / "configs").exists()


def read_mmar(root: Path, *, config: str = TRAIN, given: Mapping[str, object] | None = None) -> Mmar:
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
    return Mmar(
        name=root.resolve().name,
        train={**train, **more},
        environment={**(_json(root / "config" / ENVIRONMENT) or {}), **more},
        validation=_json(root / "config" / "config_validation.json"),
        inference=_json(root / "config" / "config_inference.json"),
        server=_json(root / "config" / "config_fed_server.json"),
        client=_json(root / "config" / "config_fed_client.json"),
        custom=dict(_files(root / "custom", ())),
        docs=dict(_files(root / "docs", _TEXT)),
    )


def pretrained(root: Path, mmar: Mmar) -> tuple[Path | None, Sequence[Note]]:
    """The file of trained weights that an MMAR begins with, and what is to be told where one that it names is not used.

    It is PRETRAIN_WEIGHTS_FILE, or else MMAR_CKPT unless `dont_load_ckpt_model` says no.
    """
    names = ["PRETRAIN_WEIGHTS_FILE", *([] if mmar.train.get("dont_load_ckpt_model") is True else ["MMAR_CKPT"])]
    variables = Variables({**mmar.environment, **mmar.train})
    notes: list[Note] = []
    for name in names:
        text = variables.put_in(mmar.environment.get(name) or "")
        path = root / str(text)
        # The author of the MMAR does not choose among the files of the researcher who makes a run of it.
        usable = text and path.suffix in _WEIGHTS and os.path.isfile(path)
        if usable and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
            return path, notes
        if text:
            why = f"{text} is no file of torch's in the MMAR; `--weights` of `fledge init-run` names another one"
            notes.append(Note(NoteKind.TO_SET, name, why))
    return None, notes


def _json(path: Path) -> dict[str, object] | None:
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
    if not _shallow(found):
        raise ConfigError(f"{path} is nested deeper than {_DEEPEST} levels; that is no configuration")
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; it has to be a mapping")
    return found


def _shallow(value: object) -> bool:
    """Whether nesting is bounded, seen level by level."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            each
            for inner in level
            if isinstance(inner, dict | list)
            for each in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return True
    return False


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """A folder's files by their path in it, without what Python compiled; only some `endings`, if there are any."""
    left, count = limits.CODE_UNPACKED, 0
    if folder.is_symlink():  # it might lead to what is private, and would travel
        raise ConfigError(f"{folder} is a link; put the folder itself there")
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        links = [name for name in folders if (Path(above) / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(above) / name
            if name.startswith(".") or name.endswith(".pyc") or (endings and path.suffix.lower() not in endings):
                continue
            if path.is_symlink() or not path.is_file():
                raise ConfigError(f"{path} is no plain file; put the file itself there")
            count, left = count + 1, left - path.stat().st_size
            if count > limits.CODE_FILES or left < 0:
                raise ConfigError(f"{folder} is too large to travel; keep data and weights out of it")
            yield path.relative_to(folder).as_posix(), path.read_bytes()
