"""The configuration of a MONAI bundle: found, merged as MONAI does, and rid of everything that writes files.

Evaluating a bundle's configuration runs code of the bundle, so nothing but a trainer at a site, and who makes a run
of a bundle of their own, reads it through here.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from monai.bundle.config_parser import ConfigParser

from protocol.errors import ConfigError
from worker.monai.parser import config_file, config_files, read

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
ELSEWHERE = frozenset(
    {
        *("CheckpointLoader", "TensorBoardHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler"),
        *("MLFlowHandler", "ClearMLHandler", "ClearMLStatsHandler", "ClearMLImageHandler"),
    }
)
"""What an inference goes without: weights of a file's, and logs that may go to other machines."""
NETWORKS = ("network_def", "network", "train#trainer#network")
"""Where a bundle's network is looked for, in order."""
_REFERRING = re.compile(r"#|[@%]\w*::")
_T = TypeVar("_T")
_LOADS = frozenset({"LoadImaged", "LoadImageD", "LoadImageDict"})
# Where pydicom is installed, MONAI says at every reader it makes that a decoder for GPUs is not; no matter here.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader", category=UserWarning)
# Nor has a hospital to act on defaults that MONAI has changed since a bundle was written.
warnings.filterwarnings("ignore", message=r"monai\.[\w.]+ .*[Dd]efault value of argument", category=FutureWarning)


class LeftOutComponent:
    """Stands where a handler or transform was left out: it attaches to nothing and changes nothing."""

    def attach(self, engine: object) -> None:
        """Do nothing, as a handler."""

    def __call__(self, data: _T, *rest: object, **more: object) -> _T:
        """Give the data back, as a transform."""
        return data


class Configs:
    """A bundle's training and evaluation configuration, with what the site puts in their place."""

    def __init__(
        self,
        root: Path,
        *,
        overrides: Mapping[str, object],
        required: Iterable[str] = REQUIRED,
        config_file: str | Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            overrides: values by id (`train#dataloader#batch_size`); `@`, `$` and `%` mean what they mean in a bundle.
            required: ids that have to be there.
            config_file: what the training is configured by, as for MONAI's runner; `configs/train.json` by default.

        Raises:
            ConfigError: a file or a required id is missing, or an override names what the bundle does not have.
        """
        self.root = root.resolve()
        train = config_files(self.root, "train", config_file)
        if not train:
            raise ConfigError(f"{self.root} is no MONAI bundle that can be trained: configs/train.json is not there")
        self._files = train, with_evaluation(self.root, train)
        self._overrides = dict(overrides)
        _check_places(self.root, overrides.get("dataset_dir"))
        importable(self.root)
        found = read(self.root, train)
        missing = [name for name in required if name not in found]
        if missing:
            raise ConfigError(
                f"the bundle lacks the required {', '.join(missing)} in {' and '.join(each.name for each in train)}; a "
                f"MONAI bundle that trains has {', '.join(REQUIRED)}: add them, or name all files with config_file"
            )
        unknown = [name for name in overrides if not has_place(found, name)]
        if unknown:
            raise ConfigError(f"the bundle has no {unknown[0]!r}, which overrides in the site's options names")

    def train(self, more: Mapping[str, object], scratch: str) -> ConfigParser:
        """A parser of the training configuration, ready to be asked for objects.

        `more` goes before all else; what the bundle writes by itself goes into the folder `scratch`.
        """
        return self._parsed(self._files[0], more, scratch)

    def evaluate(self, more: Mapping[str, object], scratch: str, shared: ConfigParser) -> ConfigParser:
        """Likewise of the evaluation's; the network is the one that the parser `shared` has made."""
        parser = self._parsed(self._files[1], more, scratch)
        made, here = shared.ref_resolver.resolved_content, parser.ref_resolver
        for name in ("network_def", "network"):
            if name in made and name in here.items:
                here.resolved_content[name] = made[name]
        return parser

    def _parsed(self, files: list[Path], more: Mapping[str, object], scratch: str) -> ConfigParser:
        parser = read(self.root, files)
        places = {name: scratch for name in SCRATCH if name in parser}
        parser.update({"bundle_root": str(self.root), **places, **self._overrides, **more})
        # Macros copy parts of the configuration, also from other files, so they come before what is left out.
        parser.resolve_macro_and_relative_ids()
        _leave_out(parser.config)
        parser.parse(reset=True)
        return parser


class Inference:
    """A bundle's `inference` configuration, with the site's places and weights that come from elsewhere."""

    def __init__(
        self,
        root: Path,
        *,
        overrides: Mapping[str, object],
        places: Mapping[str, object],
        config_file: str | Sequence[str] | None = None,
    ) -> None:
        """`overrides` as for a training, those whose ids are here; `places` go before all else, likewise.

        Raises:
            ConfigError: the bundle has no such configuration, or it lacks what every inference needs.
        """
        self._root = root.resolve()
        self._files = config_files(self._root, "inference", config_file)
        if not self._files:
            raise ConfigError(f"{root} has no configs/inference.json, so it does not say how to infer")
        _check_places(self._root, *places.values())
        importable(self._root)
        found = read(self._root, self._files)
        missing = [name for name in ("evaluator", "dataset", "output_dir") if name not in found]
        if missing:
            told = " and ".join(file.name for file in self._files)
            raise ConfigError(f"the bundle lacks {', '.join(missing)} in {told}, which every inference needs")
        wanted = {**overrides, **places}
        self._overrides = {name: value for name, value in wanted.items() if has_place(found, name)}

    def parser(self, images: Sequence[object] | None = None) -> ConfigParser:
        """A parser that is ready to be asked for objects; `images` go in the place of the bundle's own data."""
        # Names of files are handed over as they are: in a configuration some would be taken for expressions.
        parser = read(self._root, self._files, {} if images is None else {"fledge_images": list(images)})
        parser.update({"bundle_root": str(self._root), **self._overrides})
        parser.resolve_macro_and_relative_ids()
        if images is not None:
            key = self._image_key(parser)
            each = "each" if key is None else f"{{{json.dumps(key)}: each}}"
            parser.update({"dataset#data": f"$[{each} for each in fledge_images]"})
        _leave_out(parser.config, ELSEWHERE)
        parser.parse(reset=True)
        return parser

    @staticmethod
    def _image_key(parser: ConfigParser) -> str | None:
        """The name by which the first transform that loads images knows them; None if it is given the file alone."""
        for part in parts(parser.config):
            target, keys = str(part.get("_target_")).rpartition(".")[2], part.get("keys")
            if target == "LoadImage":
                return None
            if target in _LOADS and keys:
                if isinstance(keys, str) and keys.startswith("@"):
                    keys = parser.get_parsed_content(keys[1:])
                return str(keys[0] if isinstance(keys, list | tuple) else keys)
        return "image"


def with_evaluation(root: Path, train: list[Path]) -> list[Path]:
    """What the evaluation is configured by: the training's files, and the bundle's `evaluate` merged into them."""
    evaluate = config_file(root, "evaluate")
    return [*train, *([evaluate] if evaluate else [])]


def importable(root: Path) -> None:
    """Let `scripts.net.Net` in a configuration be found, as MONAI's own runner does, as long as the process lives."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _check_places(*places: object) -> None:
    """Refuse paths that MONAI would change, taking a part of them for a reference."""
    for place in places:
        text = str(place)
        if not text.startswith("$") and _REFERRING.search(text):
            raise ConfigError(f"MONAI takes a part of {text!r} for a reference; use a path without #, @ and % in it")


def has_place(parser: ConfigParser, name: str) -> bool:
    """Whether an id is there, or may be added: an argument that a component leaves to its default."""
    above = name.replace("::", "#").rpartition("#")[0]
    return name in parser or (bool(above) and above in parser)


def _leave_out(config: object, names: frozenset[str] = LEFT_OUT) -> None:
    for part in parts(config):
        target = part.get("_target_")
        if isinstance(target, str) and target.rpartition(".")[2] in names:
            part.clear()
            part["_target_"] = f"{__name__}.{LeftOutComponent.__name__}"


def parts(config: object) -> Iterator[dict[str, object]]:
    """Every mapping of a configuration, outermost first."""
    if isinstance(config, dict):
        yield config
    if isinstance(config, dict | list):
        for each in list(config.values() if isinstance(config, dict) else config):
            yield from parts(each)
