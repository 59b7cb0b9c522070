"""The files of a bundle's configuration, read and merged as MONAI's own `ConfigWorkflow` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from monai.bundle.config_parser import ConfigParser

from protocol.errors import ConfigError
from worker.api.processes import start_by_forking

META = ConfigParser.meta_key
"""Where the metadata stand in a configuration, for `@_meta_#…`."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a file; no configuration is larger."""
_ENDINGS = ("json", "yaml", "yml")
_MACRO = "%"
_UNREADABLE = (OSError, ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError)
"""What readers of JSON and YAML of any shape raise, and MONAI's macros."""


class BundleParser(ConfigParser):
    """MONAI's parser, for which the file in `%file::id` lies in the bundle, wherever the process stands.

    MONAI takes it from the working directory, and its runner is started in the bundle's folder.
    """

    def __init__(self, root: Path, names: Mapping[str, object] | None = None) -> None:
        """`names` are known to the configuration's expressions."""
        super().__init__(globals=dict(names or {}))
        self._root = root
        self.taken: list[Path] = []
        """The files of which parts have been taken over by `%`."""

    def resolve_macro_and_relative_ids(self) -> None:
        """Raises:
        ConfigError: what is taken from elsewhere by `%` is not there, or not a configuration.
        """
        for holder, at, text, file in _borrowed(self.config):
            path = _inside(self._root, file)
            check_size(path)
            self.taken.append(path)
            holder[at] = f"{_MACRO}{path}{text[len(_MACRO) + len(file) :]}"
        try:
            self.set(self._do_resolve(config=self.get()))
        except _UNREADABLE as error:
            raise ConfigError(f"what the bundle's configuration takes over by % is not there: {error}") from error


def read(root: Path, files: Sequence[Path], names: Mapping[str, object] | None = None) -> BundleParser:
    """A parser of the merged files with the bundle's metadata as `_meta_`; nothing is resolved yet.

    Raises:
        ConfigError: a file cannot be read, or is too large.
    """
    start_by_forking()
    parser = BundleParser(root, names)
    metadata = metadata_file(root, files)
    for file in (*files, *([metadata] if metadata else [])):
        check_size(file)
    try:
        parser.read_config([str(file) for file in files])
    except _UNREADABLE as error:
        told = " and ".join(file.name for file in files)
        raise ConfigError(f"the bundle's {told} cannot be read: {error}") from error
    if metadata is not None:
        try:
            parser.read_meta(str(metadata))
        except _UNREADABLE as error:
            raise ConfigError(f"the bundle's {metadata.name} cannot be read: {error}") from error
    return parser


def config_file(root: Path, name: str) -> Path | None:
    """The bundle's configuration of this name, in whichever format it is."""
    for ending in _ENDINGS:
        path = root / "configs" / f"{name}.{ending}"
        if path.is_file():
            return path
    return None


def config_files(root: Path, name: str, chosen: str | Sequence[str] | None = None) -> list[Path]:
    """The files of a configuration in the order in which they are merged; none if the bundle has no such.

    Args:
        chosen: paths in the bundle, as for MONAI's `config_file`: one, several, or several with commas between them.
            Without it the one file that is called `name`.

    Raises:
        ConfigError: one of `chosen` is not in the bundle.
    """
    if not chosen:
        found = config_file(root, name)
        return [] if found is None else [found]
    if isinstance(chosen, str):
        chosen = [chosen] if (root / chosen).is_file() else [each.strip() for each in chosen.split(",")]
    paths = [(root / each).resolve() for each in chosen]
    for given, path in zip(chosen, paths, strict=True):
        if not path.is_file() or not path.is_relative_to(root.resolve()):
            raise ConfigError(f"config_file names {given}, which is no file of the bundle; give paths in {root}")
    return paths


def metadata_file(root: Path, files: Sequence[Path]) -> Path | None:
    """Where MONAI looks for the metadata of these files: beside the first; else where a bundle has them."""
    places = [each / "metadata.json" for each in (*(file.parent for file in files[:1]), root / "configs")]
    return next((path for path in places if path.is_file()), None)


def check_size(file: Path) -> None:
    """Raises:
    ConfigError: a file is not there, or larger than any configuration.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise ConfigError(f"{file}, of which the bundle's configuration is made, is not there") from error
    if size > LARGEST:
        raise ConfigError(f"{file.name} has {size / 1e6:.0f} MB, which is no configuration")


def _inside(root: Path, file: str) -> Path:
    """A file in the bundle: below its folder, where MONAI's runner is started, or else beside the configurations."""
    places = [root / file, root / "configs" / file]
    return next((path for path in places if path.is_file()), places[0])


def _borrowed(config: object) -> Iterator[tuple[dict[object, object], object, str, str]]:
    """Where a configuration takes something from another file: the container, the key, the text, the file."""
    if not isinstance(config, dict | list):
        return
    for at, value in list(config.items() if isinstance(config, dict) else enumerate(config)):
        if isinstance(value, str) and value.startswith(_MACRO):
            if file := ConfigParser.split_path_id(value[len(_MACRO) :])[0]:
                yield config, at, value, file  # type: ignore[misc]  # a list is set at its index likewise
        else:
            yield from _borrowed(value)
