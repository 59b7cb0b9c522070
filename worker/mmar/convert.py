"""Everything that becomes of an MMAR: the files of a bundle by name."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protocol.errors import ConfigError
from worker.mmar.components import CUSTOM
from worker.mmar.entries import InstalledNames, Note
from worker.mmar.read import Mmar
from worker.mmar.translate import TranslatedBundle, translate
from worker.mmar.values import Config

_INIT = f"{CUSTOM}/__init__.py"
_ON_PATH = '''\
"""Clara had this folder itself on Python's path, so its modules import each other by their bare names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
'''
_PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_REQUIRED = ("nibabel", "pytorch-ignite")


@dataclass(frozen=True)
class Conversion:
    """A bundle's files by name, and what is to be told of how they came about."""

    files: Mapping[str, bytes]
    notes: tuple[Note, ...]


def convert(mmar: Mmar, catalogue: InstalledNames) -> Conversion:
    """The bundle that trains as an MMAR did; nothing of the MMAR is evaluated.

    Raises:
        ConfigError: something is missing, or has no equal here.
    """
    bundle = translate(mmar, catalogue)
    configs = {"train": bundle.train, "evaluate": bundle.evaluate, "metadata": metadata(mmar, bundle)}
    if bundle.inference is not None:
        configs["inference"] = bundle.inference
    files = {f"configs/{name}.json": _json(config) for name, config in configs.items()}
    files |= {f"docs/{name}": data for name, data in mmar.docs.items()}
    return Conversion({**files, **_custom(mmar.custom)}, bundle.notes)


def write(conversion: Conversion, folder: Path) -> None:
    """Write the bundle into a new or empty folder.

    Raises:
        ConfigError: it is in use or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name a new folder for the bundle")
        for name, data in conversion.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}; name a folder that can be written") from error


def metadata(mmar: Mmar, bundle: TranslatedBundle) -> Config:
    """What a bundle says about itself; versions are those installed here."""
    network = bundle.train["network_def"]
    task = str(mmar.environment.get("PROCESSING_TASK", "segmentation"))
    shape = ["*"] * (2 if network.get("spatial_dims") == 2 else 3)
    taken = _channels(network, "in_channels")
    image = {"type": "image", "format": "magnitude", "num_channels": taken, "dtype": "float32"}
    image |= {"spatial_shape": shape, "modality": "", "value_range": [], "is_patch_data": False}
    pred = {**image, "format": task, "num_channels": _channels(network, "out_channels")}
    channels = {"0": "image"} if taken == 1 else {}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"translated from the MMAR {mmar.name}"},
        **{key: _version(package) for key, package in _PACKAGES.items()},
        "required_packages_version": {package: _version(package) for package in _REQUIRED},
        "task": task,
        "description": f"{task}, translated from the Clara MMAR {mmar.name}",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": channels}},
            "outputs": {"pred": {**pred, "channel_def": {}}},
        },
    }


def _channels(network: Mapping[str, object], name: str) -> int:
    """A number of channels; 1 where the network's arguments do not say it."""
    value = network.get(name)
    return value if isinstance(value, int) else 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _custom(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The MMAR's own code as a package of the bundle, whose modules still find each other."""
    if not files:
        return {}
    own = files.get("__init__.py", b"")
    try:
        idle = all(isinstance(node, ast.Expr) for node in ast.parse(own).body)
    except (SyntaxError, ValueError, RecursionError):
        idle = False
    if not idle:
        raise ConfigError(f"{_INIT} holds code; move it into a module, because the bundle needs an {_INIT} of its own")
    return {**{f"{CUSTOM}/{name}": data for name, data in files.items()}, _INIT: _ON_PATH.encode()}


def _json(config: object) -> bytes:
    return (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode()
