"""A run made of a MONAI bundle: the bundle's files become the run's code, its network version 0."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.config import RunConfig
from fledge.runs.code_archive import ENTRY, read_files
from fledge.runs.init_run import configured, write_run
from protocol.errors import ConfigError
from protocol.spec import ModelSpec
from worker.monai.pretrained import CARD, WEIGHTS, pretrained

_TRAINER = '''\
"""Trains the MONAI bundle in this folder with the site's own fledge; written by `fledge init-run --bundle`."""

from pathlib import Path
from typing import Any

from fledge.trainers.monai_bundle import BundleTrainer, site_trainer


def trainer(**options: Any) -> BundleTrainer:
    """Called with the site's options; `bundle_trainer` says which there are."""
    return site_trainer(Path(__file__).parent, {options})
'''
_SMALL = 1024 * 1024
_TEXT = (".md", ".txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a run is made of, where it is not what the bundle has by itself."""

    weights: Path | None = None
    """A file of trained weights for version 0; by default the bundle's pretrained ones, or random ones."""
    config_file: Sequence[str] = ()
    """By which sites train unless their own options name others; by default the bundle's `train`."""


def init_bundle_run(
    bundle: Path,
    directory: Path,
    *,
    name: str,
    chosen: Chosen = Chosen(),
    settings: RunConfig | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> ModelSpec:
    """Make a run of a MONAI bundle: its network becomes version 0, its files the run's code.

    The network's part of the bundle's configuration is evaluated here, so this is for its owner's machine. A
    Clara MMAR is translated first, and `tell` is called with what people have to know about it and about version 0.

    Raises:
        ConfigError: it is no bundle that can be trained, or the directory is in use.
    """
    from worker.mmar.read import is_mmar
    from worker.trainers.monai_bundle import bundle_network

    if is_mmar(bundle):
        from fledge.runs.from_mmar import translated

        if chosen.config_file:
            raise ConfigError(
                f"{bundle} is a Clara MMAR, which has no configurations of a bundle; leave out config_file"
            )
        with translated(bundle, name, settings, tell) as found:
            chosen = Chosen(weights=chosen.weights or found.weights)
            return init_bundle_run(found.bundle, directory, name=name, chosen=chosen, settings=found.settings)
    config = configured(name, settings)
    files = bundle_files(bundle, chosen.config_file)
    if chosen.weights is None and (trained := pretrained(bundle)) is not None:
        place, card = trained
        tell(f"version 0 has the weights in {place} ({card.told()}); remove {CARD} to begin with random ones")
    network = bundle_network(bundle, weights=chosen.weights, config_file=chosen.config_file)
    return write_run(directory, config, network, files)


def bundle_files(bundle: Path, config_file: Sequence[str] = ()) -> dict[str, bytes]:
    """What of a bundle travels to the sites, by name, with the `trainer.py` that trains it.

    Weights, results and pictures stay behind; a file of `models` travels if it is small, because some configurations
    read a network's structure from one.

    Raises:
        ConfigError: it has a `trainer.py` of its own, or its files are too many or too large.
    """
    if not bundle.is_dir():
        raise ConfigError(f"{bundle} is not there; name the folder of a MONAI bundle")

    def wanted(path: Path) -> bool:
        parts = path.relative_to(bundle).parts
        if parts[0] == "docs":
            return path.suffix.lower() in _TEXT
        if path in (bundle / WEIGHTS, bundle / CARD):  # they are version 0, and need not travel twice
            return False
        return parts[0] != "eval" and (parts[0] != "models" or path.stat().st_size <= _SMALL)

    files = read_files(bundle, wanted)
    if ENTRY in files:
        raise ConfigError(
            f"{bundle / ENTRY} is in the way: a run of a bundle gets a {ENTRY} of its own; call it something else, or "
            "give the folder with --code"
        )
    options = f'{{"config_file": {json.dumps(list(config_file))}, **options}}' if config_file else "options"
    return {ENTRY: _TRAINER.replace("{options}", options).encode(), **files}
