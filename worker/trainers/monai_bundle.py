"""MONAI bundles as trainers, without a line changed in them: `bundle_trainer`, and the model that a run begins with.

The bundle's own trainer, evaluator, losses, transforms and metrics do the work. What federated learning does itself is
taken over or left out: epochs, seeds, optimizer state, checkpoints, validation while training, logs.
"""

from __future__ import annotations

import gc
import inspect
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle.config_parser import ConfigParser
from monai.engines.evaluator import SupervisedEvaluator
from monai.engines.trainer import SupervisedTrainer
from monai.engines.workflow import Workflow
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from protocol.errors import Aborted, ConfigError, DataError, Diverged, FledgeError
from protocol.messages import Fingerprint
from protocol.spec import ModelSpec
from worker.api.fingerprint import fingerprint as fingerprint_of
from worker.api.trainer import Control, EvaluationResult, TrainResult, overrides, positive_whole
from worker.api.weights import Weights
from worker.monai.configs import NETWORKS, Configs
from worker.monai.datalist import listed
from worker.monai.engine import Beginning, Engine, seed
from worker.monai.errors import explained
from worker.monai.weights import load_pretrained, load_weights
from worker.trainers.batches import length
from worker.trainers.bundle_options import BundleOptions
from worker.trainers.modules import Live, ModuleTensors, distinct, unwrapped

_BATCH = "train#dataloader#batch_size"


@dataclass
class _Built:
    """The bundle's objects, which refer to each other and to one network."""

    trainer: Engine[SupervisedTrainer]
    evaluator: Engine[SupervisedEvaluator] | None
    network: nn.Module
    dataset: object
    held_out: object
    beginning: Beginning
    printed: Fingerprint | None = None
    """Of the training data, once it was made."""

    @cached_property
    def tensors(self) -> ModuleTensors:
        """The network's tensors, looked at once."""
        return ModuleTensors(self.network)


class BundleTrainer:
    """Trains a MONAI bundle's network in place, with the bundle's own trainer."""

    def __init__(self, configs: Configs, options: BundleOptions) -> None:
        """For `bundle_trainer`, which says what the options are."""
        self._configs, self._options = configs, options
        self._keep_momentum = options.momentum == "keep"
        self._scratch = tempfile.mkdtemp(prefix="fledge-bundle-")
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        self._batch: int | None = None
        self._built: _Built | None = None
        self._ready(None)

    @property
    def model(self) -> nn.Module:
        """The bundle's network: the only copy of the model."""
        return self._ready(self._batch).network

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the network has."""
        return self._ready(self._batch).tensors.spec

    @property
    def keeps(self) -> frozenset[str]:
        """Floating tensors that stay at the site, as with `exclude`: those of BatchNorm, if that was asked for."""
        return batchnorm(self.model) if self._options.keep_local == "batchnorm" else frozenset()

    @property
    def key_metric(self) -> str:
        """The metric by which the bundle compares models, `-name` if smaller is better; empty if it names none."""
        built = self._ready(self._batch)
        return "" if built.evaluator is None else built.evaluator.key_metric

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """How many examples it trains on, and evaluates on; None where the bundle's data do not tell."""
        built = self._ready(self._batch)
        return length(built.dataset), 0 if built.evaluator is None else length(built.held_out)

    def initial(self) -> Iterator[bytes]:
        """The payload of the network as it stands: version 0 of a run that begins with it."""
        return self._ready(self._batch).tensors.payload(self.spec)

    def train(self, base: Weights, control: Control) -> TrainResult:
        wanted = overrides(control.task)
        epochs = positive_whole(control.task, "local_epochs")
        steps = wanted.local_steps or (None if epochs else self._options.local_steps)
        built = self._ready(wanted.batch_size)
        if built.trainer.length == 0:
            raise _no_batch(built.trainer.engine)
        built.network.train()  # before weights are written: some adapters fuse theirs while they evaluate
        built.tensors.load(base)
        if not self._keep_momentum:
            built.beginning.restore()
        if wanted.lr is not None:
            built.beginning.set_rate(wanted.lr)
        seed(control.seed, [built.trainer.engine.data_loader], [built.dataset])
        try:
            done = built.trainer.run(control, epochs=epochs or self._options.local_epochs or 1, steps=steps)
        except BaseException as error:
            built.beginning.restore()  # moments of a training that came to nothing
            if not isinstance(error, Aborted):
                self._built = None  # a dataset may have kept in memory what is corrected before the next one
            if isinstance(error, FledgeError) or not isinstance(error, Exception):
                raise
            raise explained(error, "the bundle's training") from error
        finally:
            # Gradients and moments take as much memory as the model, and the update is still to be formed.
            built.network.zero_grad(set_to_none=True)
        if done < 1:
            raise _no_batch(built.trainer.engine)
        if not self._keep_momentum:
            built.beginning.restore()
        trained = Live(built.tensors.named(base.spec))
        return TrainResult(
            weights=trained,
            examples=_examples(built.dataset, built.trainer, done),
            steps=done,
            metrics={**({} if (loss := built.trainer.loss) is None else {"loss": loss}), **built.trainer.metrics()},
            fingerprint=self._print(built, control),
            bfloat16=trained.bfloat16,
        )

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        built = self._ready(self._batch)
        if built.evaluator is None or not length(built.held_out) or built.evaluator.length == 0:
            return EvaluationResult(examples=0)
        built.network.train()
        built.tensors.load(model)
        try:
            done = built.evaluator.run(control)
        except Exception as error:
            if not isinstance(error, Aborted):
                self._built = None
            if isinstance(error, FledgeError):
                raise
            raise explained(error, "the bundle's evaluation") from error
        examples = _examples(built.held_out, built.evaluator, done) if done else 0
        return EvaluationResult(examples=examples, metrics=built.evaluator.metrics())

    def rehearse(self) -> float:
        """Take the first batch through transforms, network and loss, without a step, and tell the loss.

        The first batch of the evaluation is loaded as well. The network's weights are as before; what BatchNorm keeps
        of its batches is not.

        Raises:
            TrainingError: they do not fit each other, or the loss is not finite.
        """
        built = self._ready(self._batch)
        engine = built.trainer.engine
        seed(0, [engine.data_loader], [built.dataset])
        try:
            if built.evaluator is not None and length(built.held_out):
                next(iter(built.evaluator.engine.data_loader))
            batch = engine.prepare_batch(
                next(iter(engine.data_loader)), engine.state.device, engine.non_blocking, **engine.to_kwargs
            )
            inputs, targets, args, kwargs = batch if len(batch) == 4 else (*batch, (), {})
            engine.network.train()
            with torch.no_grad(), torch.autocast("cuda", enabled=engine.amp):
                outputs = engine.inferer(inputs, engine.network, *args, **kwargs)
                loss = float(engine.loss_function(outputs, targets).mean())
        except StopIteration:
            raise _no_batch(engine) from None
        except Exception as error:
            raise explained(error, "the first batch") from error
        if not math.isfinite(loss):
            raise Diverged(f"the loss of the first batch is {loss}; look for images without content")
        return loss

    def _print(self, built: _Built, control: Control) -> Fingerprint | None:
        key = control.fingerprint_key
        if self._options.fingerprint and key is not None and built.printed is None:
            built.printed = fingerprint_of(_watched(listed(built.dataset), control), key)
        return built.printed

    def _ready(self, batch: int | None) -> _Built:
        """The bundle's objects; made anew for another size of batch, which a loader cannot change."""
        if self._built is None or batch != self._batch:
            self._built = None
            gc.collect()  # the old network and its optimizer hold each other
            try:
                self._built = self._make(batch)
            except FledgeError:
                raise
            except Exception as error:
                raise explained(error, "making the bundle's trainer") from error
            self._batch = batch
        return self._built

    def _make(self, batch: int | None) -> _Built:
        more: dict[str, object] = {} if batch is None else {_BATCH: batch}
        gpus, amp = list(self._options.gpus), self._options.amp
        if device := self._options.device or (f"cuda:{gpus[0]}" if gpus else ""):
            more["device"] = f"$torch.device({device!r})"
        parser = self._configs.train(more, self._scratch)
        if "initialize" in parser:
            parser.get_parsed_content("initialize")
        trainer = parser.get_parsed_content("train#trainer")
        if not isinstance(trainer, SupervisedTrainer):
            raise ConfigError(f"train#trainer is a {type(trainer).__name__}; fledge trains with a SupervisedTrainer")
        network = unwrapped(trainer.network)
        load_pretrained(network, self._configs.root)
        _set_amp(trainer, amp)
        made = list(parser.ref_resolver.resolved_content.values())
        optimizers = {id(each): each for each in [*made, trainer.optimizer] if isinstance(each, torch.optim.Optimizer)}
        schedulers = {id(each): each for each in made if isinstance(each, torch.optim.lr_scheduler.LRScheduler)}
        beginning = Beginning(list(optimizers.values()), list(schedulers.values()))
        evaluator, held_out = self._make_evaluator(more, parser, network)
        if len(gpus) > 1:
            trainer.network = nn.DataParallel(network, gpus)
            if evaluator is not None:
                evaluator.engine.network = trainer.network
        dataset = parser.get_parsed_content("train#dataset")
        return _Built(Engine(trainer), evaluator, network, dataset, held_out, beginning)

    def _make_evaluator(
        self, more: Mapping[str, object], shared: ConfigParser, network: nn.Module
    ) -> tuple[Engine[SupervisedEvaluator] | None, object]:
        parser = self._configs.evaluate(more, self._scratch, shared)
        if "validate#evaluator" not in parser:
            return None, None
        evaluator = parser.get_parsed_content("validate#evaluator")
        if not isinstance(evaluator, SupervisedEvaluator):
            raise ConfigError(f"validate#evaluator is a {type(evaluator).__name__}; it has to be a SupervisedEvaluator")
        evaluator.network = network
        _set_amp(evaluator, self._options.amp)
        return Engine(evaluator), getattr(evaluator.data_loader, "dataset", None)


def bundle_trainer(
    bundle_root: str | Path,
    *,
    dataset_dir: str | Path,
    overrides: Mapping[str, object] | None = None,
    local_epochs: int | None = None,
    local_steps: int | None = None,
    momentum: str = "restart",
    keep_local: str | None = None,
    device: str = "",
    gpus: Sequence[int] = (),
    amp: bool | None = None,
    fingerprint: bool = False,
    config_file: str | Sequence[str] | None = None,
) -> BundleTrainer:
    """A trainer of a MONAI bundle, on the site's own data.

    Args:
        dataset_dir: the site's data, put in the place of the bundle's `dataset_dir`.
        overrides: other values of the bundle's configuration that differ here, by id (`train#dataloader#num_workers`).
        local_epochs: passes over the data for each update; or `local_steps`, exactly so many iterations; one epoch by
            default. A run's task may set either, and `lr` and `batch_size`.
        momentum: "restart" begins each training with the optimizer and the schedule as the bundle makes them, because
            moments belong to weights that others have moved since; "keep" keeps both, in memory only.
        keep_local: "batchnorm" keeps all tensors of BatchNorm layers at the site (FedBN).
        device: such as "cuda:1"; by default the bundle's choice.
        gpus: numbers of several GPUs of this machine to share each batch.
        amp: mixed precision on GPUs; by default the bundle's choice. On a CPU there is none.
        fingerprint: whether updates carry a keyed fingerprint of the files of the bundle's training list, which are
            read once in full for it.
        config_file: what the training is configured by, one path in the bundle or several that are merged in their
            order, as for MONAI's runner; `configs/train.json` by default. `evaluate` is added for the evaluation.

    Raises:
        ConfigError: an option or the bundle cannot be used.
        TrainingError: the bundle's objects cannot be made of the data here.
    """
    options = BundleOptions(
        dataset_dir=dataset_dir,
        overrides=overrides,
        local_epochs=local_epochs,
        local_steps=local_steps,
        momentum=momentum,
        keep_local=keep_local,
        device=device,
        gpus=gpus,
        amp=amp,
        fingerprint=fingerprint,
        config_file=config_file,
    )
    place = Path(dataset_dir)
    if not place.is_dir():
        raise ConfigError(f"dataset_dir: {place} is not a folder here; correct it in the site's options")
    changed = {**(overrides or {}), "dataset_dir": str(place.resolve())}
    configs = Configs(Path(bundle_root), overrides=changed, config_file=config_file)
    return BundleTrainer(configs, options)


def site_trainer(
    bundle_root: Path,
    options: Mapping[str, Any],  # values of a TOML file, each of which BundleOptions looks at
) -> BundleTrainer:
    """`bundle_trainer` of options as they stand in a site's `worker.toml`, where a slip of the pen is to be told.

    Raises:
        ConfigError: an option is unknown or missing; and all that `bundle_trainer` raises.
    """
    known = inspect.signature(bundle_trainer).parameters
    unknown = sorted(options.keys() - known.keys() | options.keys() & {"bundle_root"})
    if unknown:
        options_are = ", ".join(name for name in known if name != "bundle_root")
        raise ConfigError(f"there is no option {unknown[0]!r} for a MONAI bundle; there are {options_are}")
    if "dataset_dir" not in options:
        raise ConfigError("the site's options do not say where its data are; add dataset_dir to them")
    return bundle_trainer(bundle_root, **options)


def bundle_network(
    bundle_root: Path,
    *,
    weights: Path | None = None,
    seed: int = 0,
    overrides: Mapping[str, object] | None = None,
    config_file: str | Sequence[str] | None = None,
) -> nn.Module:
    """The network that a bundle defines, with a file's weights, its pretrained ones, or random ones by `seed`.

    No data are needed; of the configuration only the network is evaluated, with `overrides` in their places.

    Raises:
        ConfigError: it defines none, or the file does not hold its weights.
    """
    configs = Configs(bundle_root, overrides=overrides or {}, config_file=config_file)
    more = {"device": "$torch.device('cpu')"}
    parser = configs.train(more, "")
    named = next((name for name in NETWORKS if name in parser), None)
    if named is None:
        raise ConfigError("the bundle names no network_def; version 0 of a run is made of it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = parser.get_parsed_content(named)
        except Exception as error:
            raise explained(error, "making the bundle's network") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"the bundle's {named} is a {type(network).__name__}; it has to be a torch module")
    if weights is not None:
        load_weights(unwrapped(network), weights)
    else:
        load_pretrained(unwrapped(network), bundle_root)
    return unwrapped(network)


def batchnorm(network: nn.Module) -> frozenset[str]:
    """The floating tensors of BatchNorm layers, found by the layers' type; their names are the specification's."""
    inside = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for name in module.state_dict()
    }
    return frozenset(names[0] for names, each in distinct(network) if each.is_floating_point() and inside & set(names))


def _set_amp(engine: Workflow, wanted: bool | None) -> None:
    """MONAI's mixed precision is made for CUDA; elsewhere it would warn in every iteration and do nothing."""
    device = engine.state.device
    engine.amp = (engine.amp if wanted is None else wanted) and device is not None and device.type == "cuda"


def _watched(examples: Iterator[object], control: Control) -> Iterator[object]:
    """The same examples, unless the training is aborted while they are read."""
    for example in examples:
        control.check()
        yield example


def _no_batch(engine: Workflow) -> DataError:
    loader = engine.data_loader
    size, batch = length(getattr(loader, "dataset", None)), getattr(loader, "batch_size", None)
    if size and batch and getattr(loader, "drop_last", False):
        return DataError(
            f"the bundle makes batches of {batch}, drops incomplete ones, and has only {size} to train on here; add "
            'images, or set overrides = { "train#dataloader#drop_last" = false } in the site\'s options'
        )
    return DataError(
        "the bundle's data gave not a single batch; add images to what it trains on, or correct dataset_dir in the "
        "site's options"
    )


def _examples(dataset: object, engine: Engine[SupervisedTrainer] | Engine[SupervisedEvaluator], done: int) -> int:
    size = length(dataset)
    return done * int(getattr(engine.engine.data_loader, "batch_size", None) or 1) if size is None else size
