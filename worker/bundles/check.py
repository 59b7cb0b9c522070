"""A check of a MONAI bundle, and of a site's data for it, before anything is deployed.

From what costs nothing to what costs most: the files' own words, the network, the lists of data, every image, and at
last one batch through everything. What builds on something that is wrong is not tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from monai.bundle.config_parser import ConfigParser
from torch import nn

from protocol.errors import ConfigError, FledgeError
from worker.bundles.check_configs import config_findings
from worker.bundles.check_data import Item, duplicates, item_findings
from worker.bundles.check_expected import expected
from worker.bundles.findings import Problem, Severity, of_error
from worker.data.datalist import LIMIT
from worker.data.datalist_parser import document_of, unlike_utf8
from worker.data.text import read_text
from worker.monai.configs import Configs
from worker.monai.errors import explained
from worker.monai.parser import META
from worker.trainers.modules import model_spec
from worker.trainers.monai_bundle import bundle_network, bundle_trainer

_LISTS = ("train#dataset#data", "validate#dataset#data")
_CACHING = "CacheDataset"


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """A bundle's network, and what an update of it weighs."""

    kind: str
    parameters: int
    tensors: int
    bytes: int
    """Of an update before encryption: floating tensors as float32."""


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a check found, and how far it came."""

    findings: tuple[Problem, ...]
    network: NetworkSize | None = None
    training: int | None = None
    """How many examples the lists hold, where they were read."""
    validation: int | None = None
    loss: float | None = None
    """Of the first batch, where it was tried."""

    @property
    def good(self) -> bool:
        """Whether nothing has to be corrected; there may be warnings."""
        return not any(each.severity is Severity.ERROR for each in self.findings)


def check_bundle(
    root: Path,
    data: Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    quick: bool = False,
    config_file: str | Sequence[str] | None = None,
) -> BundleReport:
    """Check a bundle, and with `data` the images and labels in that folder.

    The bundle's code runs here: its network is made, and with `data` all that its training needs.

    Args:
        overrides: as in a site's options.
        quick: look at headers of images alone, and try no batch.
        config_file: what the training is configured by, as for MONAI's runner; `configs/train.json` by default.
    """
    changed = {**(overrides or {}), **({} if data is None else {"dataset_dir": str(data.resolve())})}
    if data is not None and not data.is_dir():
        return BundleReport((Problem(str(data), "is not a folder here", "name the folder of the site's data"),))
    root = root.resolve()
    found = config_findings(root, changed, config_file)
    if not BundleReport(tuple(found)).good:
        return BundleReport(tuple(found))
    try:
        parser = Configs(root, overrides=changed, config_file=config_file).train({}, "")
        network = network_size(bundle_network(root, overrides=changed, config_file=config_file))
    except FledgeError as error:
        return BundleReport((*found, of_error(error, "the bundle")))
    if data is None:
        return BundleReport(tuple(found), network)
    found += list_findings(parser, data.resolve())
    lists: list[Sequence[Item] | None] = [None, None]
    if BundleReport(tuple(found)).good:
        lists = [_listed(parser, name, found) for name in _LISTS]
        found += _example_findings(parser, lists, quick)
    loss: float | None = None
    if not quick and BundleReport(tuple(found)).good:
        try:
            quickly = {**changed, **_lazily(parser)}
            loss = bundle_trainer(root, dataset_dir=data, overrides=quickly, config_file=config_file).rehearse()
        except FledgeError as error:
            found.append(of_error(error, "training"))
    training, validation = (None if each is None else len(each) for each in lists)
    return BundleReport(tuple(found), network, training, validation, loss)


def network_size(network: nn.Module) -> NetworkSize:
    """How large a network is."""
    spec = model_spec(network)
    parameters = sum(each.numel() for each in network.parameters())
    return NetworkSize(type(network).__name__, parameters, len(spec.names), spec.update_length)


def list_findings(parser: ConfigParser, data: Path) -> Iterator[Problem]:
    """What is wrong with the lists of data that the configuration names, as files."""
    texts = {name: value for name, value in parser.get().items() if isinstance(value, str) and "json" in value}
    for name in texts:
        try:
            path = parser.get_parsed_content(name)
        except Exception as error:  # an expression of the bundle's own
            yield of_error(explained(error, f"evaluating {name}"), "configs/train.json")
            continue
        if not isinstance(path, str | Path) or not str(path).endswith(".json"):
            continue
        # A bare name that others put behind a folder, as in converted MMARs, is no path by itself.
        if Path(path).is_absolute() or not any(f"@{name}" in text for text in texts.values()):
            yield from datalist_findings(Path(path), data)


def datalist_findings(file: Path, data: Path) -> Iterator[Problem]:
    """What is wrong with a list of data in the shape of the Medical Segmentation Decathlon's."""
    where = str(file)
    if not os.path.exists(file):
        yield Problem(where, "is not there", "write it, or correct dataset_dir")
        return
    try:
        text, encoding = read_text(file, LIMIT, "the list of data")
        found = document_of(text, file.name)
    except ConfigError as error:
        yield of_error(error, where)
        return
    if not_read := [*unlike_utf8(file.name, encoding)]:
        yield of_error(ConfigError(not_read[0]), where)
    if not isinstance(found, dict) or not any(isinstance(value, list) for value in found.values()):
        yield Problem(where, "holds no lists", 'write {"training": [{"image": …, "label": …}], "validation": […]}')
        return
    if windows := [path for items in found.values() for path in _paths(items) if "\\" in path]:
        told = f"writes paths as Windows does, such as {windows[0]}"
        yield Problem(where, told, "write / instead, with which MONAI finds them", Severity.WARNING)
    for name, items in found.items():
        odd = [path for path in _paths(items) if _leads_outside(path, data)]
        if odd and isinstance(items, list):
            told = f"names {len(odd)} files of {name} outside dataset_dir, such as {odd[0]}"
            yield Problem(where, told, "keep data below dataset_dir, if that was not intended", Severity.WARNING)


def _listed(parser: ConfigParser, name: str, found: list[Problem]) -> Sequence[Item] | None:
    """The examples that the bundle trains on or validates on; None where it does not list them."""
    if name not in parser:
        return None
    try:
        items = parser.get_parsed_content(name)
    except Exception as error:  # an expression of the bundle's own
        found.append(of_error(explained(error, "listing the data"), name))
        return None
    if not isinstance(items, Sequence) or not all(isinstance(each, Mapping) for each in items):
        return None
    if not items and name == _LISTS[0]:
        found.append(Problem(name, "lists no data", "add some to the list, or correct dataset_dir"))
    elif not items:
        told = "lists no data", "add some, or this site evaluates no version"
        found.append(Problem(name, *told, Severity.WARNING))
    return items


def _example_findings(parser: ConfigParser, lists: Sequence[Sequence[Item] | None], quick: bool) -> Iterator[Problem]:
    try:
        wanted = expected(parser, parser.get(META, {}))
    except Exception as error:  # transforms of the bundle's own
        yield of_error(explained(error, "making the bundle's transforms"), "train#dataset#transform")
        return
    for items in lists:
        yield from item_findings(items or (), wanted, quick=quick)
    yield from duplicates(lists[0] or (), lists[1] or (), wanted.loaded)


def _lazily(parser: ConfigParser) -> dict[str, object]:
    """Overrides that keep a check from preparing all the data for the sake of one batch."""
    found: dict[str, object] = {}
    for part in ("train", "validate"):
        dataset = parser.get(f"{part}#dataset")
        if isinstance(dataset, dict) and str(dataset.get("_target_")).rpartition(".")[2] == _CACHING:
            found[f"{part}#dataset#cache_num"] = 0
        if isinstance(parser.get(f"{part}#dataloader"), dict):
            found[f"{part}#dataloader#num_workers"] = 0
    return found


def _paths(items: object) -> Iterator[str]:
    """The texts under `image` and `label` in a list of data, which are meant to be paths."""
    for item in items if isinstance(items, list) else ():
        fields = [item.get(key) for key in ("image", "label")] if isinstance(item, dict) else [item]
        for field in fields:
            yield from (each for each in (field if isinstance(field, list) else [field]) if isinstance(each, str))


def _leads_outside(path: str, data: Path) -> bool:
    """Whether a path of a list leads elsewhere by its text; links are the site's affair."""
    place = PurePath(os.path.normpath(data / path))
    return place != data and data not in place.parents
