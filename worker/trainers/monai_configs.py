"""The configuration of a MONAI bundle: found, merged as MONAI does, and rid of everything that writes files.

Evaluating a bundle's configuration runs code of the bundle, so nothing but a trainer at a site, and whoever makes a run
of a bundle of their own, reads it through here.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle.config_parser import ConfigParser

from protocol.errors import ConfigError

REQUIRED = (
    *("bundle_root", "device", "dataset_dir"),
    *("train#trainer", "train#trainer#max_epochs", "train#dataset", "train#inferer"),
)
"""What a bundle's training configuration has to name, by MONAI's specification of bundles."""
SCRATCH = ("ckpt_dir", "output_dir")
"""Where bundles write by convention; pointed into a scratch folder, for handlers of their own that we do not know."""
LEFT_OUT = frozenset(
    {
        *("CheckpointSaver", "CheckpointLoader", "StatsHandler", "MetricLogger", "LogfileHandler", "MetricsSaver"),
        *("TensorBoardHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "ClassificationSaver"),
        *("MLFlowHandler", "ClearMLHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "ProbMapProducer"),
        *("ValidationHandler", "EarlyStopHandler", "Checkpoint", "ModelCheckpoint", "EarlyStopping", "ProgressBar"),
        *(f"{name}{end}" for name in ("SaveImage", "SaveClassification") for end in ("", "d", "D", "Dict")),
    }
)
"""Handlers and transforms that write files, or do what a federation does itself: checkpoints, validation, stopping."""
_NAMES = ("json", "yaml", "yml")
# Where pydicom is installed, MONAI says at every reader it makes that a decoder for GPUs is not: nobody has to act.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)


class Left:
    """Stands where a handler or transform was left out: it attaches to nothing and changes nothing."""

    def attach(self, engine: Any) -> None:
        """Do nothing, as a handler."""

    def __call__(self, data: Any, *rest: Any, **more: Any) -> Any:
        """Give the data back, as a transform."""
        return data


class Configs:
    """A bundle's training and evaluation configuration, with what the site puts in their place."""

    def __init__(self, root: Path, *, overrides: Mapping[str, Any], required: Iterable[str] = REQUIRED) -> None:
        """
        Args:
            overrides: values by id (`train#dataloader#batch_size`); `@`, `$` and `%` mean what they mean in a bundle.
            required: ids that have to be there.

        Raises:
            ConfigError: a file or a required id is missing, or an override names what the bundle does not have.
        """
        self.root = root.resolve()
        train, evaluate = _file(self.root, "train"), _file(self.root, "evaluate")
        if train is None:
            raise ConfigError(f"{self.root} is no MONAI bundle that can be trained: configs/train.json is not there")
        self._files = [train], [train, *([evaluate] if evaluate else [])]
        self._overrides = dict(overrides)
        _importable(self.root)
        found = self._read(self._files[0])
        missing = [name for name in required if name not in found]
        if missing:
            raise ConfigError(
                f"the bundle lacks the required {', '.join(missing)} in {train.name}; a MONAI bundle that trains has "
                f"{', '.join(REQUIRED)}"
            )
        unknown = [name for name in overrides if not _has_place(found, name)]
        if unknown:
            raise ConfigError(f"the bundle has no {unknown[0]!r}, which overrides in the site's options names")

    def train(self, more: Mapping[str, Any], scratch: str) -> Any:
        """A parser of the training configuration, ready to be asked for objects.

        `more` goes before all else; what the bundle writes by itself goes into the folder `scratch`.
        """
        return self._parsed(self._files[0], more, scratch)

    def evaluate(self, more: Mapping[str, Any], scratch: str, shared: Any) -> Any:
        """Likewise of the evaluation's; the network is the one that the parser `shared` has made."""
        parser = self._parsed(self._files[1], more, scratch)
        made, here = shared.ref_resolver.resolved_content, parser.ref_resolver
        for name in ("network_def", "network"):
            if name in made and name in here.items:
                here.resolved_content[name] = made[name]
        return parser

    def _read(self, files: list[Path]) -> Any:
        parser = ConfigParser()
        try:
            parser.read_config([str(file) for file in files])
        except (OSError, ValueError) as error:
            raise ConfigError(f"the bundle's {files[-1].name} cannot be read: {error}") from error
        return parser

    def _parsed(self, files: list[Path], more: Mapping[str, Any], scratch: str) -> Any:
        parser = self._read(files)
        places = {name: scratch for name in SCRATCH if name in parser}
        parser.update({"bundle_root": str(self.root), **places, **self._overrides, **more})
        # Macros copy parts of the configuration, also from other files, so they come before what is left out.
        parser.resolve_macro_and_relative_ids()
        _leave_out(parser.config)
        parser.parse(reset=True)
        return parser


def _file(root: Path, name: str) -> Path | None:
    for ending in _NAMES:
        path = root / "configs" / f"{name}.{ending}"
        if path.is_file():
            return path
    return None


def _importable(root: Path) -> None:
    """Let `scripts.net.Net` in a configuration be found, as MONAI's own runner does, as long as the process lives."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _has_place(parser: Any, name: str) -> bool:
    """Whether an id is there, or may be added: an argument that a component leaves to its default."""
    above = name.replace("::", "#").rpartition("#")[0]
    return name in parser or (bool(above) and above in parser)


def _leave_out(config: Any) -> None:
    for part in _parts(config):
        target = part.get("_target_")
        if isinstance(target, str) and target.rpartition(".")[2] in LEFT_OUT:
            part.clear()
            part["_target_"] = f"{__name__}.{Left.__name__}"


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a configuration, outermost first."""
    if isinstance(config, dict):
        yield config
    if isinstance(config, dict | list):
        for each in list(config.values() if isinstance(config, dict) else config):
            yield from _parts(each)
