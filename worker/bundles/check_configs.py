"""What a bundle's files say for themselves, before anything of them is made: ids, names, packages, metadata."""

from __future__ import annotations

import difflib
import json
import pydoc
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from monai.bundle.config_item import ComponentLocator
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils.module import version_leq

from protocol.errors import ConfigError
from worker.bundles.findings import Problem, Severity
from worker.monai.configs import LEFT_OUT, NETWORKS, REQUIRED, has_place, importable, parts, with_evaluation
from worker.monai.errors import explained
from worker.monai.parser import META, BundleParser, check_size, config_files, metadata_file, read

INFERENCE = ("bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer")
"""What a bundle's inference configuration has to name, by MONAI's specification of bundles."""
METADATA = (
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)
_IMAGE = (*("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"),)
_FRAMEWORKS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
_AGAIN = "correct the file and check again"


def config_findings(
    root: Path, overrides: Mapping[str, object], config_file: str | Sequence[str] | None = None
) -> list[Problem]:
    """What is wrong with the configurations and the metadata of the bundle at `root`; nothing of it is made.

    The bundle's modules are imported, to see whether what the configurations name is there.
    """
    importable(root)
    try:
        train, infer = config_files(root, "train", config_file), config_files(root, "inference")
    except ConfigError as error:
        return [Problem(f"{root}", str(error), "name the bundle's own files")]
    if not train:
        return [Problem(f"{root}", "is no MONAI bundle: configs/train.json is not there", "name a bundle's folder")]
    metadata = metadata_file(root, train) or root / "configs" / "metadata.json"
    about = list(metadata_findings(metadata))
    if any(each.advice == _AGAIN for each in about):
        return about  # every configuration is read with the metadata in it
    found: list[Problem] = []
    for files, check in (
        (train, _train_ids),
        (with_evaluation(root, train), lambda parser, where: iter(())),
        (infer, _inference_ids),
    ):
        if not files:
            continue
        where = f"configs/{files[-1].name}"
        try:
            parser = _resolved(read(root, files), overrides)
        except ConfigError as error:
            found.append(Problem(where, str(error), _AGAIN))
            continue
        if files == train:
            found += misspelt(root, files, overrides)
        known = {each.what for each in found}  # what evaluate.json is added to was looked at before
        said = {name: value for name, value in parser.get().items() if name != META}
        more = [*check(parser, where), *targets(said, root, where), *references(parser, where)]
        more += travelling(root, parser.taken, where)
        found += [each for each in dict.fromkeys(more) if each.what not in known]
    return [*found, *about]


def misspelt(root: Path, files: Sequence[Path], overrides: Mapping[str, object]) -> Iterator[Problem]:
    """Overrides that add something whose name is nearly that of what is there: MONAI would take both."""
    try:
        parser = _resolved(read(root, files), {})
    except ConfigError:  # an override stands in the place of what cannot be read
        return
    for name in overrides:
        above, _, last = name.replace("::", "#").rpartition("#")
        beside = parser.get(above, parser.get())
        if name in parser or not isinstance(beside, Mapping):
            continue
        for near in difflib.get_close_matches(last, [each for each in beside if each != last], 1, 0.8):
            meant = f"{above}#{near}" if above else near
            yield Problem(
                f"override {name}", "adds what the bundle does not have", f"is {meant} meant?", Severity.WARNING
            )


def metadata_findings(file: Path) -> Iterator[Problem]:
    """What a bundle's metadata lack, and which packages they ask for that are not here."""
    where = f"configs/{file.name}"
    if not file.is_file():
        yield Problem(where, "is not there", "write it, so that others know what the bundle is", Severity.WARNING)
        return
    try:
        found = _document(file)
    except ConfigError as error:
        yield Problem(where, str(error), _AGAIN)
        return
    if lacking := [name for name in METADATA if name not in found]:
        yield Problem(where, f"lacks {', '.join(lacking)}", "add them: MONAI asks for them", Severity.WARNING)
    image = _below(found, "network_data_format", "inputs", "image")
    if "network_data_format" in found and (lacking := [name for name in _IMAGE if name not in image]):
        yield Problem(
            f"{where}#network_data_format#inputs#image", f"lacks {', '.join(lacking)}", "add them", Severity.WARNING
        )
    yield from packages(found, where, _installed)


def packages(found: Mapping[str, object], where: str, installed: Callable[[str], str | None]) -> Iterator[Problem]:
    """Packages that metadata ask for and that are missing or older; `installed` tells a package's version."""
    wanted = {package: found[name] for name, package in _FRAMEWORKS.items() if name in found}
    wanted |= _below(found, "required_packages_version") | _below(found, "optional_packages_version")
    optional = _below(found, "optional_packages_version")
    for package, version in wanted.items():
        here = installed(package)
        if here is None and package not in optional:
            yield Problem(where, f"asks for {package}, which is not installed", "install it where the worker runs")
        elif here and not version_leq(str(version), here):
            told = f"was made with {package} {version}, and {here} is installed"
            yield Problem(where, told, "upgrade it if training fails", Severity.WARNING)


def targets(config: object, root: Path, where: str) -> Iterator[Problem]:
    """Names after `_target_` that nothing answers to; those that fledge replaces anyway are not asked for."""
    locator = ComponentLocator()
    asked = [part["_target_"] for part in parts(config) if not _disabled(part) and "_target_" in part]
    for target in dict.fromkeys(each for each in asked if isinstance(each, str)):
        if target.startswith(("$", "@", "%")) or target.rpartition(".")[2] in LEFT_OUT:
            continue
        if locator.get_component_module_name(target) is None and (problem := _problem(target, root)):
            what, advice = problem
            yield Problem(where, f"names {target}: {what}", advice)


def references(parser: BundleParser, where: str) -> Iterator[Problem]:
    """References (`@id`) to what the configuration does not have."""
    items = parser.ref_resolver.items
    texts = {at: item.config for at, item in items.items() if isinstance(item.config, str) and not _is_meta(at)}
    asked = {name: at for at, text in texts.items() for name in ReferenceResolver.match_refs_pattern(text)}
    for name, at in asked.items():
        if name and name not in items:
            place, said = (each.replace("::", "#") for each in (at, name))
            yield Problem(f"{where}#{place}", f"refers to @{said}, which is not there", "correct the name")


def travelling(root: Path, taken: Sequence[Path], where: str) -> Iterator[Problem]:
    """Files of which the configuration takes parts by `%` and which do not go to the sites with the bundle."""
    for path in dict.fromkeys(taken):
        if not path.resolve().is_relative_to(root):
            told = f"takes a part of {path}, which is outside the bundle and does not travel to the sites with it"
            advice = "copy the file into configs, and name it from the bundle's folder: %configs/…"
            yield Problem(where, told, advice, Severity.WARNING)


def _train_ids(parser: BundleParser, where: str) -> Iterator[Problem]:
    yield from _ids(parser, where, REQUIRED, "a bundle that trains has them, if in several files (--config-file)")
    if not any(name in parser for name in NETWORKS):
        yield from _ids(parser, where, NETWORKS[:1], "version 0 of a run is made of it")
    if "validate#evaluator" not in parser:
        yield Problem(where, "lacks validate#evaluator", "add one, or the site evaluates no version", Severity.WARNING)


def _inference_ids(parser: BundleParser, where: str) -> Iterator[Problem]:
    yield from _ids(parser, where, INFERENCE, "MONAI's inference needs them")


def _ids(parser: BundleParser, where: str, wanted: Sequence[str], why: str) -> Iterator[Problem]:
    if missing := [name for name in wanted if name not in parser]:
        yield Problem(where, f"lacks the required {', '.join(missing)}", f"add what is missing: {why}")


def _resolved(parser: BundleParser, overrides: Mapping[str, object]) -> BundleParser:
    """The parser with what is overridden in its place; none of its expressions is evaluated."""
    try:
        parser.update({name: value for name, value in overrides.items() if has_place(parser, name)})
        parser.resolve_macro_and_relative_ids()
        parser.parse(reset=True)
    except Exception as error:  # whatever MONAI's macros raise
        raise ConfigError(f"cannot be read: {explained(error, 'reading it')}") from error
    return parser


def _document(file: Path) -> dict[str, object]:
    try:
        check_size(file)
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError("is no JSON object")
    return found


def _problem(target: str, root: Path) -> tuple[str, str] | None:
    """Why nothing answers to a dotted name, and what to do; None if something does."""
    first, dot, _ = target.partition(".")
    try:
        if pydoc.locate(target) is not None:
            return None
    except pydoc.ErrorDuringImport as error:
        cause = error.value
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return f"it needs {cause.name}, which is not installed", "install it where the worker runs"
        return f"importing it failed with {type(cause).__name__}: {cause}", "correct the bundle's code"
    if not dot:
        return "MONAI has nothing of this name", "correct the name, or write it with its module"
    if first == "scripts" and not (root / first).is_dir():
        return "the bundle has no folder scripts", "copy the bundle as a whole"
    if not _is_module(first):
        return f"{first} is not installed", "install it where the worker runs, or correct the name"
    return f"{first} is there, and has nothing of this name", "correct the name, or install the version that has it"


def _installed(package: str) -> str | None:
    """A package's version here, empty if only its module is found; names are those of packages or modules."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):  # the latter for no name at all
        module = package.replace("-", "_")
        return "" if module.isidentifier() and _is_module(module) else None


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a name such as `__main__`, which stands for no file
        return False


def _is_meta(at: str) -> bool:
    """Whether an id is the metadata's, whose texts are meant for people."""
    return at.partition("::")[0] == META


def _disabled(part: Mapping[str, object]) -> bool:
    return str(part.get("_disabled_", False)).lower() == "true"


def _below(document: object, *names: str) -> dict[str, object]:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}
