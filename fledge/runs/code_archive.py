"""A run's training code as a zip archive whose bytes follow from its files alone: its SHA-256 names the code."""

from __future__ import annotations

import ast
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from broker.runtime.code_archive import read_archive
from protocol import limits
from protocol.errors import ConfigError, WireError

CODE = "code"
"""The folder of a run that holds its training code."""
ENTRY = "trainer.py"
"""The file of it that has to be there, with a `trainer` in it."""
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_MIB = 1024 * 1024


def load_code(run: Path) -> bytes:
    """The archive of a run's code; empty if its folder holds none, and sites train with code of their own.

    Raises:
        ConfigError: sites would refuse it; says why.
    """
    if not (run / CODE).exists():
        return b""
    packed = archive(read_code(run / CODE))
    try:
        for _ in read_archive(packed):
            pass
    except WireError as error:
        raise ConfigError(f"{run / CODE}: {error}; sites would refuse it") from error
    return packed


def archive(files: Mapping[str, bytes]) -> bytes:
    """The zip of these files by name; equal files give equal bytes.

    Raises:
        ConfigError: it is over the limit.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zip:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.create_system, entry.external_attr = _UNIX, _MODE << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            zip.writestr(entry, files[name], compresslevel=9)
    if len(packed := buffer.getvalue()) > limits.CODE:
        raise ConfigError(
            f"the code is {len(packed) / _MIB:.1f} MiB as an archive, at most {limits.CODE // _MIB} MiB are taken; "
            "keep data and weights out of it"
        )
    return packed


def read_code(folder: Path) -> dict[str, bytes]:
    """The files of a code folder by name, without what is hidden and what Python compiled.

    Raises:
        ConfigError: `trainer.py` or its `trainer` is missing, a link is among the files, or they are too many or large.
    """
    files = read_files(folder)
    _check_entry(folder, files)
    return files


def read_files(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> dict[str, bytes]:
    """The files of a folder by name, without what is hidden, what Python compiled, and what is not `wanted`.

    Raises:
        ConfigError: a link is among the files, or they are too many or too large.
    """
    files: dict[str, bytes] = {}
    left = limits.CODE_UNPACKED
    try:
        for path in _listed(folder):
            if not wanted(path):
                continue
            if len(files) == limits.CODE_FILES:
                raise ConfigError(f"{folder} holds more than {limits.CODE_FILES} files; keep data out of it")
            with path.open("rb") as file:
                data = file.read(left + 1)
            if (left := left - len(data)) < 0:
                raise ConfigError(
                    f"{folder} is larger than {limits.CODE_UNPACKED // _MIB} MiB; keep data and weights out of it"
                )
            files[path.relative_to(folder).as_posix()] = data
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror or error}; the code has to be readable") from error
    return files


def _listed(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
            continue
        if entry.is_symlink():
            raise ConfigError(f"{path} is a link, and links do not travel; put the file itself there")
        if entry.is_dir():
            yield from _listed(path)
        elif entry.is_file():
            yield path
        else:
            raise ConfigError(f"{path} is no plain file; take it out of the code")


def _check_entry(folder: Path, files: Mapping[str, bytes]) -> None:
    """Sites find out late what can be seen here: that there is nothing to call."""
    wanted = f"a run's code needs {ENTRY} with `def trainer(**options)`, which returns the trainer"
    if ENTRY not in files:
        raise ConfigError(f"{folder / ENTRY} is not there; {wanted}")
    try:
        parsed = ast.parse(files[ENTRY], ENTRY)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{folder / ENTRY}{line}: not valid Python ({error.args[0]})") from None
    if not {"trainer", "*"} & set(_names(parsed)):
        raise ConfigError(f"{folder / ENTRY} has no `trainer`; {wanted}")


def _names(module: ast.Module) -> Iterator[str]:
    """What a module defines or brings in, as far as it can be seen without running it."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
