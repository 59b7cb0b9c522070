"""An MMAR as a MONAI bundle: a pure function of what was read."""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.errors import ConfigError
from worker.mmar import inference
from worker.mmar.clara31 import is_older, modern
from worker.mmar.components import Components, named
from worker.mmar.entries import ComponentRole, InstalledNames, Note, NoteKind
from worker.mmar.read import Mmar
from worker.mmar.values import Config, flag, listed, mapping
from worker.mmar.variables import Variables

_COPIED = 4 * 1024 * 1024
_LABEL = re.compile(r"[\w.+ ()-]{1,64}")
_KEY = re.compile(r"[\w.-]{1,64}")
_PLACES = {
    "DATA_ROOT": "@dataset_dir",
    "DATASET_JSON": "@data_list",
    "MMAR_CKPT_DIR": "@ckpt_dir",
    "MMAR_EVAL_OUTPUT_PATH": "@output_dir",
}
"""What variables with paths become: references, so that each site can set them."""
_FILLED: Mapping[str, Config] = {
    "LrScheduleHandler": {"lr_scheduler": "@lr_scheduler"},
    "ValidationHandler": {"validator": "@validate#evaluator"},
    "TensorBoardStatsHandler": {"log_dir": "@output_dir"},
    "MetricsSaver": {"save_dir": "@output_dir"},
    "CheckpointSaver": {"save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}},
    "SaveImaged": {"output_dir": "@output_dir"},
    "CheckpointLoader": {
        "_disabled_": "$not os.path.exists(@ckpt_dir + '/model.pt')",
        "load_path": "$@ckpt_dir + '/model.pt'",
        "load_dict": {"model": "@network"},
    },
}
"""Arguments that Clara gave its components by itself."""
_HEAD = (*("imports", "bundle_root", "ckpt_dir", "output_dir"), *("dataset_dir", "dataset_json", "data_list", "device"))
"""What every configuration of the bundle begins with."""
_TOP = {
    "multi_gpu": "the option `gpus` of the site",
    "dynamic_input_shape": "torch's networks take any size",
    "dont_load_ckpt_model": "version 0 of a run says which weights there are",
    "CLARA_TRAIN_VERSION": "bundles name the version of MONAI",
    "search": "AutoML is no part of a training",
}
_FLAGS = {"cudnn_benchmark": "torch.backends.cudnn, 'benchmark'", "tf32": "torch.backends.cuda.matmul, 'allow_tf32'"}


@dataclass(frozen=True)
class TranslatedBundle:
    """The configurations of a bundle, and what is to be told of how they came about."""

    train: Config
    evaluate: Config
    inference: Config | None
    notes: tuple[Note, ...]


def translate(mmar: Mmar, catalogue: InstalledNames) -> TranslatedBundle:
    """The bundle that trains as an MMAR did.

    Raises:
        ConfigError: something is missing, or has no equal; everything that was refused is in one error.
    """
    environment = dict(mmar.environment)
    task = environment.get("PROCESSING_TASK", "segmentation")
    if task not in ("segmentation", "classification"):
        raise ConfigError(f'PROCESSING_TASK is {task!r}; set it to "segmentation" or "classification"')
    modules = {name.partition("/")[0].removesuffix(".py") for name in mmar.custom}
    work = _Translation(mmar, Components(catalogue, modules), segments=task == "segmentation")
    train = work.train()
    evaluate = work.evaluation()
    inference = work.inference(train)
    if refused := work.components.refused:
        raise ConfigError(f"{mmar.name} cannot be translated: {'; '.join(refused)}")
    return TranslatedBundle(train, evaluate, inference, tuple(work.components.notes))


class _Translation:
    """One translation, from part to part."""

    def __init__(self, mmar: Mmar, components: Components, *, segments: bool) -> None:
        self.components = components
        self._mmar, self._segments = mmar, segments
        self._root = str(mmar.environment.get("DATA_ROOT") or "data")
        scalars = {**mmar.environment, **mmar.train, **_PLACES}
        self._variables = Variables(scalars)
        self._config = self._variables.filled(mmar.train)
        if is_older(self._config):
            self._config, notes = modern(self._config, segments=segments)
            components.notes |= dict.fromkeys(notes)
        self._seen: dict[str, Config] = {}
        self._copied = _COPIED

    def train(self) -> Config:
        config = self._config
        train = self._section(config, "train")
        validate = config.get("validate")
        used: Config = {}
        for part, role in (
            ("model", ComponentRole.NETWORK),
            ("loss", ComponentRole.LOSS),
            ("optimizer", ComponentRole.OPTIMIZER),
        ):
            used[part] = self._one(train, part, role, "train") or {}
        used["optimizer"] = {"params": "$@network.parameters()", **used["optimizer"]}
        schedule = self.components.translate(train.get("lr_scheduler"), ComponentRole.SCHEDULE, "train lr_scheduler")
        bundle: Config = {
            **self._head(),
            "network_def": used["model"],
            "network": "$@network_def.to(@device)",
            "loss": used["loss"],
            "optimizer": _target_first(used["optimizer"]),
            **({"lr_scheduler": _target_first({"optimizer": "@optimizer", **schedule})} if schedule else {}),
            "train": self._training(train, schedule is not None, validates=isinstance(validate, dict)),
        }
        if isinstance(validate, dict):
            bundle["validate"] = self._validation(validate, "validate")
        else:
            self.components.note(NoteKind.LEFT_OUT, "validate", "the MMAR has none; versions are not evaluated")
        if schedule is not None:
            why = 'each training of a site begins it anew; momentum = "keep" among the site\'s options keeps it going'
            self.components.note(NoteKind.TO_SET, "train lr_scheduler", why)
        self._told(config)
        return {**bundle, "initialize": self._initialize(), "run": ["$@train#trainer.run()"]}

    def evaluation(self) -> Config:
        """What evaluates a model by itself; config_validation.json goes before the training's own validation."""
        run = {"run": ["$@validate#evaluator.run()"]}
        if self._mmar.validation is None or "validate" not in self._config:
            return run
        found = self._flat(self._mmar.validation)
        parts = self._validation(found, "validation")
        return {**{f"validate#{name}": value for name, value in parts.items() if name != "handlers"}, **run}

    def inference(self, train: Config) -> Config | None:
        """What applies the model to images: as config_inference.json says, or else validation without labels."""
        head = {name: train[name] for name in (*_HEAD, "network_def", "network")}
        if self._mmar.inference is not None:
            found = {**self._flat(self._mmar.inference), "key_metric": None, "additional_metrics": []}
            return inference.inference(head, self._validation(found, "inference"))
        if "validate" not in train:
            return None
        parts = copy.deepcopy(train["validate"])
        images, post = parts["preprocessing"], parts.get("postprocessing")
        images["transforms"] = inference.without_labels(images["transforms"])
        if post is not None:
            post["transforms"] = inference.without_labels(post["transforms"])
            if self._segments:
                post["transforms"] = inference.saved(post["transforms"])
        key = self._mmar.environment.get("INFER_DATALIST_KEY", "test")
        parts["dataset"] = {"_target_": "Dataset", "data": self._listed({"data_list_key": key}, "inference")}
        parts["handlers"] = [handler for handler in parts["handlers"] if handler["_target_"] == "StatsHandler"]
        return inference.inference(head, parts)

    def _flat(self, config: Mapping[str, object]) -> Config:
        """A configuration of evaluation or inference alone, whose parts may stand in a section of their own."""
        given = {**self._mmar.environment, **self._mmar.train, **config, **_PLACES}
        found = Variables(given).filled(config)
        for name in ("validate", "inference"):
            if isinstance(found.get(name), dict):
                return dict(found[name])
        return found

    def _head(self) -> Config:
        name = self._mmar.environment.get("DATASET_JSON")
        if not isinstance(name, str) or not name:
            raise ConfigError("DATASET_JSON is missing; set it in config/environment.json or with --set DATASET_JSON=…")
        place = self._inside(Variables({**self._mmar.environment, **self._mmar.train}).put_in(name), "DATASET_JSON")
        self.components.note(
            NoteKind.TO_SET, "dataset_dir", f"the folder of the data, which Clara had in {self._root!r}"
        )
        self.components.note(NoteKind.TO_SET, "dataset_json", f"in overrides, if the list of data is not {place} there")
        return {
            "imports": ["$import os"],
            "bundle_root": ".",
            "ckpt_dir": "$@bundle_root + '/models'",
            "output_dir": "$@bundle_root + '/eval'",
            "dataset_dir": self._root if self._root[0] not in "@$%" else "data",
            "dataset_json": place,
            "data_list": "$os.path.join(@dataset_dir, @dataset_json)",
            "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        }

    def _inside(self, path: object, where: str) -> str:
        """A path relative to the data; one that leads elsewhere is its last part."""
        root = posixpath.normpath(self._root) + "/"
        inside = str(path).removeprefix(root)
        if posixpath.isabs(inside):
            why = f"{inside} is not below DATA_ROOT; its last part is looked for there"
            self.components.note(NoteKind.TO_SET, where, why)
            inside = posixpath.basename(inside)
        if not isinstance(path, str) or not inside or inside[0] in "$%" or "@" in inside or ".." in inside.split("/"):
            raise ConfigError(f"{where} is {str(path)[:80]!r}; it has to be the path of a file below DATA_ROOT")
        return inside

    def _section(self, config: Mapping[str, object], name: str) -> Config:
        section = config.get(name)
        if not isinstance(section, dict):
            raise ConfigError(f"{name} is missing from the training configuration; an MMAR that trains has it")
        return section

    def _one(self, section: Mapping[str, object], part: str, role: ComponentRole, where: str) -> Config | None:
        if not section.get(part):
            raise ConfigError(f"{where} {part} is missing from the training configuration; an MMAR that trains has it")
        return self.components.translate(section[part], role, f"{where} {part}")

    def _training(self, train: Config, scheduled: bool, *, validates: bool) -> Config:
        loss = "$monai.handlers.from_engine(['loss'], first=True)"
        found = self._common(train, "train")
        handlers = self._handlers(train, "train", scheduled=scheduled, validates=validates)
        for handler in handlers:
            if handler["_target_"] in ("StatsHandler", "TensorBoardStatsHandler"):
                handler.setdefault("output_transform", loss)
        found |= {"handlers": handlers, **self._metrics(train, "train")}
        engine = self.components.translate(train.get("trainer"), ComponentRole.ENGINE, "train trainer")
        engine = engine or {"_target_": "SupervisedTrainer"}
        epochs = engine.get("max_epochs", self._config.get("epochs"))
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ConfigError(f"epochs is {epochs!r}; it has to be a positive whole number")
        found["trainer"] = {
            **engine,
            "max_epochs": epochs,
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
            **_attached(found, "train", "key_train_metric"),
            "train_handlers": "@train#handlers",
            "amp": self._flag("amp"),
        }
        return found

    def _validation(self, validate: Config, where: str) -> Config:
        found = {
            **self._common(validate, where),
            "handlers": self._handlers(validate, where, scheduled=False, validates=False),
            **self._metrics(validate, where),
        }
        engine = self.components.translate(validate.get("evaluator"), ComponentRole.ENGINE, f"{where} evaluator")
        found["evaluator"] = {
            **(engine or {"_target_": "SupervisedEvaluator"}),
            "device": "@device",
            "val_data_loader": "@validate#dataloader",
            "network": "@network",
            "inferer": "@validate#inferer",
            **_attached(found, "validate", "key_val_metric"),
            "val_handlers": "@validate#handlers",
            "amp": self._flag("amp"),
        }
        return found

    def _common(self, section: Config, where: str) -> Config:
        """What training and validation have alike."""
        data = self._data(section, where)
        inferer = self.components.translate(section.get("inferer"), ComponentRole.INFERER, f"{where} inferer")
        return {**data, "inferer": inferer or {"_target_": "SimpleInferer"}, **self._post(section, where)}

    def _data(self, section: Config, where: str) -> Config:
        name = "train" if where == "train" else "validate"
        steps = self._transforms(section.get("pre_transforms"), f"{where} pre_transforms", remember=where == "train")
        raw = section.get("dataset")
        if not isinstance(raw, dict):
            raise ConfigError(f"{where} dataset is missing; an MMAR says there which list of data it takes")
        lists = ("data_list_file_path", "data_file_base_dir", "data_list_key")
        dataset = self.components.translate(raw, ComponentRole.DATASET, f"{where} dataset", also=lists) or {}
        dataset |= {"data": self._listed(raw, where), "transform": f"@{name}#preprocessing"}
        loader = self.components.translate(section.get("dataloader"), ComponentRole.LOADER, f"{where} dataloader")
        return {
            "preprocessing": {"_target_": "Compose", "transforms": steps},
            "dataset": dataset,
            "dataloader": {**(loader or {"_target_": "DataLoader", "batch_size": 1}), "dataset": f"@{name}#dataset"},
        }

    def _listed(self, raw: Config, where: str) -> str:
        key = raw.get("data_list_key", {"train": "training", "inference": "test"}.get(where, "validation"))
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ConfigError(f"{where} dataset: data_list_key is {key!r}; it has to be a name such as 'training'")
        file = raw.get("data_list_file_path", "@data_list")
        if file != "@data_list":
            inside = self._inside(str(file).removeprefix("@dataset_dir/"), f"{where} data_list_file_path")
            file = f"os.path.join(@dataset_dir, {inside!r})"
        base = str(raw.get("data_file_base_dir", "@dataset_dir")).rstrip("/")
        if base != "@dataset_dir":
            inside = self._inside(base.removeprefix("@dataset_dir/"), f"{where} data_file_base_dir")
            base = f"os.path.join(@dataset_dir, {inside!r})"
        options = f"is_segmentation={self._segments}, data_list_key={key!r}, base_dir={base}"
        return f"$monai.data.load_decathlon_datalist({file}, {options})"

    def _transforms(self, raw: object, where: str, *, remember: bool = False) -> list[Config]:
        """Translated transforms; one that only refers to another of the training is a copy of it."""
        found = []
        for each in listed(raw, where):
            each = self._referred(each, where, self._seen)
            translated = self.components.translate(each, ComponentRole.TRANSFORM, where)
            if remember:
                self._seen[named(each, where).called] = mapping(each, where)
            if translated is not None:
                found.append({**translated, **_FILLED.get(translated["_target_"], {})})
        return found

    def _referred(self, raw: object, where: str, known: Mapping[str, Config]) -> object:
        if not (isinstance(raw, dict) and "ref" in raw):
            return raw
        name = str(raw["ref"])
        if name not in known:
            raise ConfigError(f"{where} refers to {name[:60]!r}, which is not among train pre_transforms")
        if (left := self._copied - len(repr(known[name]))) < 0:
            raise ConfigError(
                f"{where}: the transforms referred to come to more than {_COPIED} characters; shorten them"
            )
        self._copied = left
        return {**known[name], **{key: value for key, value in raw.items() if key != "ref"}}

    def _post(self, section: Config, where: str) -> Config:
        place = f"{where} post_transforms"
        known = {
            named(each, place).called: each
            for each in listed(self._config["train"].get("post_transforms"), "train post_transforms")
            if isinstance(each, dict) and "ref" not in each
        }
        raw = listed(section.get("post_transforms"), place)
        steps = self._transforms([self._referred(each, place, known) for each in raw], place)
        return {"postprocessing": {"_target_": "Compose", "transforms": steps}} if steps else {}

    def _handlers(self, section: Config, where: str, *, scheduled: bool, validates: bool) -> list[Config]:
        found = []
        for raw in listed(section.get("handlers"), f"{where} handlers"):
            handler = self.components.translate(raw, ComponentRole.HANDLER, f"{where} handlers")
            if handler is None:
                continue
            target = handler["_target_"]
            if target == "LrScheduleHandler" and not scheduled and section.get("lr_scheduler"):
                self.components.note(NoteKind.LEFT_OUT, f"{where} handlers {target}", "there is no schedule")
                continue
            if target == "LrScheduleHandler" and not scheduled:
                raise ConfigError(f"{where} handlers: LrScheduleHandler needs train lr_scheduler, which is missing")
            if target == "ValidationHandler" and not validates:
                self.components.note(NoteKind.LEFT_OUT, f"{where} handlers {target}", "there is no validate section")
                continue
            found.append({**handler, **_FILLED.get(target, {})})
        return found

    def _metrics(self, section: Config, where: str) -> Config:
        """The key metric and the additional ones, each under its label."""
        key, more = section.get("key_metric"), listed(section.get("additional_metrics"), f"{where} additional_metrics")
        found: Config = {}
        for name, raws in (("key_metric", [key] if key else []), ("additional_metrics", more)):
            metrics: Config = {}
            for raw in raws:
                metric = self.components.translate(raw, ComponentRole.METRIC, f"{where} {name}")
                said = mapping(raw, f"{where} {name}")
                label = said.get("log_label") or said.get("name", "")
                if not isinstance(label, str) or not _LABEL.fullmatch(label):
                    raise ConfigError(f"{where} {name}: log_label is {label!r}; it has to be a short name")
                if metric is not None:
                    metric.setdefault("output_transform", "$monai.handlers.from_engine(['pred', 'label'])")
                    metrics[label] = metric
            if metrics:
                found[name] = metrics
        return found

    def _flag(self, name: str) -> bool:
        return flag(self._config.get(name), name)

    def _initialize(self) -> list[str]:
        found = []
        seed = mapping(self._config.get("determinism"), "determinism").get("random_seed")
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise ConfigError(f"determinism random_seed is {seed!r}; it has to be a whole number below 2**32")
            found.append(f"$monai.utils.set_determinism(seed={seed})")
        found += [f"$setattr({place}, True)" for name, place in _FLAGS.items() if self._flag(name)]
        return found

    def _told(self, config: Mapping[str, object]) -> None:
        """Tell which values of the top level mean nothing in a bundle."""
        read = {"epochs", "train", "validate", "learning_rate", "amp", "determinism", *_FLAGS}
        text = repr((self._mmar.train.get("train"), self._mmar.train.get("validate")))
        for name in sorted(config.keys() - read):
            if f"{{{name}}}" not in text:
                self.components.note(NoteKind.LEFT_OUT, name, _TOP.get(name, "means nothing in a bundle"))


def _attached(found: Config, name: str, key: str) -> Config:
    """An engine's arguments for those parts that are there."""
    places = {"postprocessing": "postprocessing", "key_metric": key, "additional_metrics": "additional_metrics"}
    return {places[part]: f"@{name}#{part}" for part in places if part in found}


def _target_first(component: Config) -> Config:
    """A component with its name before the rest, as people write it."""
    return {name: component[name] for name in sorted(component, key=lambda name: name != "_target_")}
