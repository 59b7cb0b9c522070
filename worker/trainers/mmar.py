"""Clara MMARs as trainers: translated to MONAI bundles, which `worker.trainers.monai_bundle` trains."""

from __future__ import annotations

import difflib
import importlib
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError
from worker.mmar.convert import Conversion, convert, write
from worker.mmar.entries import ComponentRole
from worker.mmar.read import TRAIN, read_mmar
from worker.trainers.monai_bundle import BundleTrainer, bundle_trainer

_MODULES = {
    ComponentRole.TRANSFORM: ("monai.transforms",),
    ComponentRole.LOSS: ("monai.losses", "torch.nn"),
    ComponentRole.NETWORK: ("monai.networks.nets",),
    ComponentRole.OPTIMIZER: ("monai.optimizers", "torch.optim"),
    ComponentRole.SCHEDULE: ("torch.optim.lr_scheduler", "monai.optimizers"),
    ComponentRole.DATASET: ("monai.data",),
    ComponentRole.LOADER: ("monai.data",),
    ComponentRole.INFERER: ("monai.inferers",),
    ComponentRole.METRIC: ("monai.handlers", "ignite.metrics"),
    ComponentRole.HANDLER: ("monai.handlers",),
    ComponentRole.ENGINE: ("monai.engines",),
}
"""Where the classes of a role are, the first place first."""
_BARE = "monai."
_NEAREST = 3


class Installed:
    """What the MONAI and torch installed here have: the catalogue of names for a translation."""

    def find(self, role: ComponentRole, name: str) -> str | None:
        for module in _MODULES.get(role, ()):
            found = _public(module).get(name)
            if inspect.isclass(found) or (role is ComponentRole.NETWORK and inspect.isfunction(found)):
                return name if module.startswith(_BARE) and role is not ComponentRole.SCHEDULE else f"{module}.{name}"
        return None

    def nearest(self, role: ComponentRole, name: str) -> Sequence[str]:
        names = [each for module in _MODULES.get(role, ()) for each in _public(module) if each[0].isupper()]
        return difflib.get_close_matches(name, sorted(set(names)), _NEAREST)

    def unknown(self, target: str, arguments: Collection[str]) -> Sequence[str]:
        taken = _arguments(target)
        return [] if taken is None else sorted(set(arguments) - taken)


def convert_mmar(root: Path, *, config: str = TRAIN, given: Mapping[str, object] | None = None) -> Conversion:
    """The bundle that an MMAR becomes with the MONAI installed here.

    Raises:
        ConfigError: it is no MMAR, or has parts without an equal.
    """
    return convert(read_mmar(root, config=config, given=given), Installed())


def mmar_trainer(
    mmar_root: str | Path,
    *,
    dataset_dir: str | Path,
    config: str = TRAIN,
    **options: Any,  # BundleOptions looks at each
) -> BundleTrainer:
    """A trainer of a Clara MMAR, on the site's own data, which it translates into a folder that goes with the trainer.

    Args:
        dataset_dir: the site's data, put in the place of DATA_ROOT.
        config: the training configuration in the MMAR's `config`.
        options: those of `bundle_trainer`.

    Raises:
        ConfigError: it is no MMAR, has parts without an equal, or an option is wrong.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fledge-mmar-"))
    try:
        write(convert_mmar(Path(mmar_root), config=config), scratch)
        trainer = bundle_trainer(scratch, dataset_dir=dataset_dir, **options)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(trainer, shutil.rmtree, scratch, ignore_errors=True)
    return trainer


def resolve(target: str) -> object:
    """The class of a target as `Installed.find` and the table of names write it, or None."""
    module, _, name = target.rpartition(".")
    modules = [module] if module else [each for places in _MODULES.values() for each in places]
    return next((found for each in modules if (found := _public(each).get(name)) is not None), None)


@cache
def _arguments(target: str) -> frozenset[str] | None:
    made = resolve(target)
    parameters = list(inspect.signature(made).parameters.values()) if callable(made) else []
    if not callable(made) or any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return frozenset(each.name for each in parameters)


@cache
def _public(module: str) -> dict[str, object]:
    return dict(_members(module))


def _members(module: str) -> Iterator[tuple[str, object]]:
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed here ({error}); MMARs are translated where MONAI is") from error
    for name in dir(loaded):
        if not name.startswith("_"):
            yield name, getattr(loaded, name)
