"""A MONAI bundle's own inference, with weights and images that it is given: `BundleInference`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ignite.engine import Events
from monai.engines.evaluator import SupervisedEvaluator
from torch import nn

from protocol.errors import ConfigError, FledgeError
from worker.api.weights import Weights
from worker.bundles.inputs import (
    InferenceInput,
    InferenceInputs,
    Reading,
    images_below,
    images_listed,
)
from worker.bundles.overlay import lies_alike, picture, read_result, results_of, stem_of
from worker.data.gatekeeper import volume_of
from worker.monai.configs import Inference
from worker.monai.errors import explained
from worker.trainers.modules import load, unwrapped
from worker.trainers.monai_bundle import batchnorm

SCRATCH = ".images"
"""Where series lie as NIfTI files while the bundle infers."""
OVERLAY = "_overlay.png"
Progress = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What became of the results."""

    pictures: Sequence[str] = ()
    """By their paths in the output."""
    elsewhere: Sequence[str] = ()
    """Results that do not lie on their image's voxels: the bundle saves them so."""


class BundleInference:
    """One use of a bundle's `inference` configuration, with its own transforms, inferer and writers."""

    def __init__(
        self,
        bundle_root: Path,
        *,
        images: Path,
        output: Path,
        overrides: Mapping[str, object] | None = None,
        config_file: str | Sequence[str] | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Read the configuration and the images, and make the bundle's objects.

        `images` is put in the place of `dataset_dir`, `output` in that of `output_dir`. If the bundle finds no data
        there by its own pattern or list, or DICOM, every image below the folder is taken. Of `overrides` those are
        used whose ids the configuration has; `config_file` is what it is made of, `configs/inference.json` by default.

        Raises:
            ConfigError: the bundle has no such configuration, or there are no images, or training would refuse one.
            TrainingError: its objects cannot be made.
        """
        self._output = output.resolve()
        more = {"dataset_dir": str(images.resolve()), "output_dir": str(self._output)}
        configs = Inference(bundle_root, overrides=overrides or {}, places=more, config_file=config_file)
        try:
            self.own_list = True
            """Whether the images are those of the bundle's own pattern or list."""
            self.inputs, found = self._images(configs, images, reading or Reading())
            parser = configs.parser(found)
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

    def _images(
        self, configs: Inference, folder: Path, reading: Reading
    ) -> tuple[InferenceInputs, Sequence[object] | None]:
        """The images, and what takes the place of the bundle's own list."""
        own, scratch = _own_list(configs), self._output / SCRATCH
        if own is None:
            return InferenceInputs(images=()), None
        if (listed := images_listed(own, folder, scratch, reading)) is not None:
            return listed
        self.own_list = False
        inputs = images_below(folder, scratch, reading)
        return inputs, [str(image.path) for image in inputs.images]

    def keeps(self, keep_local: str | None) -> frozenset[str]:
        """The tensors that a site with this `keep_local` keeps to itself."""
        return batchnorm(self.network) if keep_local == "batchnorm" else frozenset()

    def run(self, weights: Weights, progress: Progress | None = None) -> Drawn:
        """Load the weights, infer, and draw the results beside themselves.

        Raises:
            TrainingError: the weights are not this network's, or the inference failed.
        """
        load(self.network, weights)
        engine = self._engine
        if progress is not None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda: progress("inferring", int(engine.state.iteration), int(engine.state.epoch_length or 0)),
            )
        try:
            engine.run()
            return self._draw(progress)
        except FledgeError:
            raise
        except Exception as error:
            raise explained(error, "the bundle's inference") from error
        finally:
            shutil.rmtree(self._output / SCRATCH, ignore_errors=True)

    def _draw(self, progress: Progress | None) -> Drawn:
        known = {image.name: image for image in self.inputs.images if image.source is not None}
        found = list(results_of(self._output, list(known)))
        pictures, elsewhere = [], []
        for done, (name, path) in enumerate(found):
            if progress is not None:
                progress("drawing", done, len(found))
            alike, drawn = _drawn(known[name], path)
            pictures.append(drawn.relative_to(self._output).as_posix())
            if not alike:
                elsewhere.append(path.relative_to(self._output).as_posix())
        return Drawn(pictures=pictures, elsewhere=elsewhere)


def _drawn(image: InferenceInput, result: Path) -> tuple[bool, Path]:
    """Whether a result lies on its image, and its picture."""
    if image.source is None:
        raise ValueError(f"{image.path} is of a kind that cannot be drawn")
    below, above = volume_of(image.source), read_result(result)
    target = result.with_name(f"{stem_of(result)}{OVERLAY}")
    picture(below, above).save(target)
    return lies_alike(above, below), target


def _own_list(configs: Inference) -> Sequence[object] | None:
    """What the bundle finds in the folder by its own pattern or list; None if its dataset knows by itself."""
    parser = configs.parser()
    if "dataset#data" not in parser:
        return None
    try:
        return list(parser.get_parsed_content("dataset#data") or ())
    except Exception:  # whatever its expressions raise where their list is not there
        return ()
