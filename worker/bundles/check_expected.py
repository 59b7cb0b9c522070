"""What images and labels a bundle is made for, as far as its transforms, its network and its metadata tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from monai.bundle.config_parser import ConfigParser
from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.utility.dictionary import ConvertToMultiChannelBasedOnBratsClassesd

from worker.bundles.check_data import Expected, labels

_KEEPING = ("monai.transforms.croppad", "monai.transforms.spatial", "monai.transforms.intensity", "monai.transforms.io")
"""Modules whose transforms leave an image's channels and a label's values what they are in the file."""
_KEEPING_TOO = frozenset(
    {
        *("EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "ToTensord", "ToDeviced", "ToNumpyd", "Identityd"),
        *("DeleteItemsd", "SqueezeDimd", "FgBgToIndicesd", "ClassesToIndicesd", "DataStatsd", "Compose"),
    }
)
"""Others that do, or that only add something beside them."""
_BRATS = frozenset({0, 1, 2, 4})
_MOST_CHANNELS = 2**16
"""A number beyond it is a slip of the pen; as classes it would fill the memory."""


def expected(parser: ConfigParser, metadata: Mapping[str, object]) -> Expected:
    """What the bundle's first transforms and its network take.

    Evaluates the bundle's transforms; where one of them may change channels or labels, these are not judged.
    """
    transforms = list(_flat([parser.get_parsed_content("train#dataset#transform")]))
    loaders = [each for each in transforms if isinstance(each, LoadImaged)]
    loaded = tuple(dict.fromkeys(str(key) for each in loaders for key in each.keys))
    changing = [each for each in transforms if not _keeps(each)]
    brats = [each for each in changing if isinstance(each, ConvertToMultiChannelBasedOnBratsClassesd)]
    images = [key for key in loaded if not labels(key)]
    formats = metadata.get("network_data_format")
    takes = _number(parser, "network_def#in_channels", formats, "inputs", "image")
    gives = _number(parser, "network_def#out_channels", formats, "outputs", "pred")
    kept = len(images) == 1 and not _touched(images, changing) and not any(map(_converts, loaders))
    classes = _classes(metadata.get("label_classes")) or (frozenset(range(gives)) if gives and gives > 1 else None)
    relabelled = _touched([key for key in loaded if labels(key)] or ["label"], changing)
    if relabelled:
        classes = _BRATS if brats and len(brats) == len(changing) else None
    return Expected(takes if kept else None, classes, None if relabelled else gives, loaded)


def _flat(transforms: Iterable[object]) -> Iterator[object]:
    for each in transforms:
        if isinstance(each, Compose):
            yield from _flat(each.transforms)
        elif each is not None:
            yield each


def _keeps(transform: object) -> bool:
    kind = type(transform)
    return kind.__module__.startswith(_KEEPING) or (
        kind.__module__.startswith("monai.") and kind.__name__ in _KEEPING_TOO
    )


def _touched(keys: Iterable[str], changing: Iterable[object]) -> bool:
    """Whether one of the transforms works on one of the keys; one without keys may work on any."""
    wanted = set(keys)
    return any(not (found := getattr(each, "keys", None)) or wanted & set(map(str, found)) for each in changing)


def _converts(loader: LoadImaged) -> bool:
    """Whether pictures are made grey, or the like, while they are read."""
    return any(getattr(reader, "converter", None) is not None for reader in loader._loader.readers)


def _number(parser: ConfigParser, name: str, formats: object, *below: str) -> int | None:
    """A number of channels, from the network's arguments or else from the metadata."""
    found = parser.get(name)
    if isinstance(found, str):  # a reference, such as to the metadata, or an expression
        found = parser.get_parsed_content(name)
    if not isinstance(found, int):
        for each in (*below, "num_channels"):
            formats = formats.get(each) if isinstance(formats, dict) else None
        found = formats
    return found if isinstance(found, int) and 0 < found <= _MOST_CHANNELS else None


def _classes(told: object) -> frozenset[int] | None:
    """The values of labels, if the metadata say them as a mapping from values to names."""
    if not isinstance(told, Mapping) or not told:
        return None
    try:
        return frozenset(int(value) for value in told)
    except (TypeError, ValueError):
        return None
