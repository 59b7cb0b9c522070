"""Data to try a trainer with that need no download: scikit-learn carries them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from protocol.errors import ConfigError

PREFIX = "sample:"
_DIGITS = "digits"
_DIGITS_FILE = ("datasets", "data", "digits.csv.gz")


def sample(name: str, place: Path) -> Path:
    """Write a data set below `place`, as a file of numpy arrays called images and labels.

    Raises:
        ConfigError: there is none of this name, or scikit-learn is not installed.
    """
    if name != _DIGITS:
        raise ConfigError(f"there is no sample {name!r}; there is {PREFIX}{_DIGITS}")
    # Without importing scikit-learn, which takes longer than the trial's own training of such images.
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("the sample is scikit-learn's; install it with: pip install 'fledge-fl[demo]'")
    table = np.loadtxt(Path(found.submodule_search_locations[0], *_DIGITS_FILE), delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    path = place / f"{name}.npz"
    np.savez(path, images=(pixels / 16).astype(np.float32), labels=labels.astype(np.int64))
    return path
