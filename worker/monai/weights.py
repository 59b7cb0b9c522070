"""Trained weights in a file of their own: as MONAI saves them, or as safetensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protocol.errors import ConfigError
from worker.monai.pretrained import CARD, pretrained

_KEYS = ("model", "state_dict")
"""Where MONAI puts a state dict in a checkpoint."""


def load_weights(network: nn.Module, file: Path) -> None:
    """Put a file's weights into a network: a state dict as it is, in a checkpoint, or with a prefix to all names.

    Raises:
        ConfigError: the file is not there, holds something else, or the weights of another network.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is not there; name a file of trained weights")
    try:
        saved = _weights_in(_read(file), network.state_dict().keys())
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever torch and safetensors make of a file of another kind
        raise ConfigError(
            f"{file} holds no plain weights that can be read ({type(error).__name__}); save the network's state_dict() "
            "alone"
        ) from error
    try:
        network.load_state_dict(saved)
    except (RuntimeError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"{file} does not hold the weights of the bundle's network: {told}") from error


def load_pretrained(network: nn.Module, bundle: Path) -> None:
    """Put a bundle's pretrained weights into its network, if it has some.

    Raises:
        ConfigError: they are damaged, or another network's.
    """
    found = pretrained(bundle)
    if found is None:
        return
    try:
        load_weights(network, found[0])
    except ConfigError as error:
        raise ConfigError(f"{error}; remove {bundle / CARD} to begin with random weights") from error


def _weights_in(saved: Any, names: Collection[str]) -> Any:  # whatever was read
    """The values of exactly these names, or with one prefix to all, as others save them (`module.`, `net.`).

    In a checkpoint MONAI's own keys go before others, of which only one may hold such values (means of the weights may
    lie beside them). What cannot be found is for torch to say.
    """
    if not isinstance(saved, Mapping):
        return saved
    inner = {str(key): value for key, value in saved.items() if isinstance(value, Mapping)}
    candidates = {"": saved, **inner}
    found = {key: values for key, each in candidates.items() if (values := _under_a_prefix(each, names)) is not None}
    for key in ("", *_KEYS):
        if key in found:
            return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    return next((inner[key] for key in _KEYS if key in inner), saved)


def _under_a_prefix(saved: Mapping[Any, Any], names: Collection[str]) -> Any:  # as above
    first = next(iter(names), "")
    for prefix in sorted({str(name).removesuffix(first) for name in saved if str(name).endswith(first)}):
        if {name for name in saved if str(name).startswith(prefix)} == {prefix + name for name in names}:
            return {name: saved[prefix + name] for name in names}
    return None


def _read(file: Path) -> object:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
