"""What a bundle's list of data names, file by file, for the keyed fingerprint of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from protocol.errors import ConfigError, DataError


def listed(dataset: object) -> Iterator[object]:
    """The examples that a MONAI dataset was given, with the SHA-256 of each file in the place of its path.

    So a data set that was moved is the same, and one whose images were changed is not. Transforms, which throw dice,
    are not applied.

    Raises:
        ConfigError: the dataset was given no list.
        DataError: a file cannot be read.
    """
    examples = getattr(dataset, "data", None)
    if not isinstance(examples, Sequence) or isinstance(examples, str):
        raise ConfigError(
            f"the bundle's {type(dataset).__name__} has no list of data to make a fingerprint of; leave fingerprint "
            "out of the site's options"
        )
    return map(_contents, examples)


def _contents(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _contents(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_contents(each) for each in value]
    if not isinstance(value, str | Path):
        return value
    try:
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return str(value)  # a word, such as a class
    except (OSError, ValueError) as error:
        raise DataError(f"{value} cannot be read for the fingerprint: {error}; correct it or the list") from error
