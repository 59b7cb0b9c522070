"""A MONAI bundle's own inference, with weights and images that it is given: `BundleInference`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ignite.engine import Events
from monai.engines.evaluator import SupervisedEvaluator
from torch import nn

from protocol.errors import ConfigError, FledgeError
from worker.api.weights import Weights
from worker.monai.configs import Inference
from worker.monai.errors import explained
from worker.trainers.modules import load, unwrapped
from worker.trainers.monai_bundle import batchnorm

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""What counts as an image where a bundle names none."""


class BundleInference:
    """One use of a bundle's `inference` configuration, with its own transforms, inferer and writers."""

    def __init__(
        self,
        bundle_root: Path,
        *,
        images: Path,
        output: Path,
        overrides: Mapping[str, object] | None = None,
        device: str = "",
        config_file: str | Sequence[str] | None = None,
    ) -> None:
        """Read the configuration and make its objects.

        `images` is put in the place of `dataset_dir`, `output` in that of `output_dir`. If the bundle finds no data
        there by its own pattern or list, every image below the folder is taken. Of `overrides` those are used whose
        ids the configuration has; `config_file` is what it is made of, `configs/inference.json` by default.

        Raises:
            ConfigError: the bundle has no such configuration, or there are no images.
            TrainingError: its objects cannot be made.
        """
        more = {"dataset_dir": str(images.resolve()), "output_dir": str(output.resolve())}
        if device:
            more["device"] = f"$torch.device({device!r})"
        configs = Inference(bundle_root, overrides=overrides or {}, places=more, config_file=config_file)
        try:
            self.found = None if _has_data(configs) else images_below(images)
            """The images, if they are not by the bundle's own pattern or list."""
            parser = configs.parser(self.found)
            if "initialize" in parser:
                parser.get_parsed_content("initialize")
            evaluator = parser.get_parsed_content("evaluator")
            if not isinstance(evaluator, SupervisedEvaluator):
                raise ConfigError(
                    f"the bundle's evaluator is a {type(evaluator).__name__}; it has to be a SupervisedEvaluator"
                )
            self._engine = evaluator
            self.network: nn.Module = unwrapped(self._engine.network)
            self.count = len(parser.get_parsed_content("dataset"))
        except FledgeError:
            raise
        except Exception as error:
            raise explained(error, "making the bundle's inference") from error

    def keeps(self, keep_local: str | None) -> frozenset[str]:
        """The tensors that a site with this `keep_local` keeps to itself."""
        return batchnorm(self.network) if keep_local == "batchnorm" else frozenset()

    def run(self, weights: Weights, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the weights and infer; `progress` takes batches done and batches in all.

        Raises:
            TrainingError: the weights are not this network's, or the inference failed.
        """
        load(self.network, weights)
        engine = self._engine
        if progress is not None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda: progress(int(engine.state.iteration), int(engine.state.epoch_length or 0)),
            )
        try:
            engine.run()
        except FledgeError:
            raise
        except Exception as error:
            raise explained(error, "the bundle's inference") from error


def images_below(folder: Path) -> list[str]:
    """Every image below a folder; a folder of DICOM slices is one image.

    Raises:
        ConfigError: there is none, or two have the same name, so that one's result would replace the other's.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.lower().endswith(ENDINGS)]
    series = {path.parent for path in files if path.suffix.lower() == ".dcm"}
    found = [path for path in files if path.suffix.lower() != ".dcm"] + sorted(series)
    if not found:
        raise ConfigError(f"{folder} holds no images; those that count end in {', '.join(ENDINGS)}")
    names: dict[str, Path] = {}
    for path in found:
        if (other := names.setdefault(_result(path.name), path)) != path:
            raise ConfigError(f"{other} and {path} have the same name, and so would their results; rename one of them")
    return [str(path.resolve()) for path in found]


def _result(name: str) -> str:
    """What MONAI calls the result of an image: its name up to the last dot, be that a folder's named by a UID."""
    before, end = os.path.splitext(name)
    return os.path.splitext(before)[0] if end == ".gz" else before


def _has_data(configs: Inference) -> bool:
    """Whether the bundle finds data in the folder by its own pattern or list."""
    parser = configs.parser()
    if "dataset#data" not in parser:
        return True  # a dataset of the bundle's own kind knows by itself where to look
    try:
        return bool(parser.get_parsed_content("dataset#data"))
    except Exception:  # whatever its expressions raise where their list is not there
        return False
