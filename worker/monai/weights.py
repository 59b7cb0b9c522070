"""Trained weights in a file of their own: as MONAI saves them, or as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from protocol.errors import ConfigError


def load_weights(network: nn.Module, file: Path) -> None:
    """Put a file's weights into a network: a state dict, perhaps under the key `model` or `state_dict`.

    Raises:
        ConfigError: the file is not there, holds something else, or the weights of another network.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is not there; name a file of trained weights")
    try:
        saved: object = _read(file)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise ConfigError(f"{file} holds no plain weights that can be read: {type(error).__name__}") from error
    for key in ("model", "state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    try:
        network.load_state_dict(saved)  # type: ignore[arg-type]  # torch says so itself
    except (RuntimeError, TypeError, AttributeError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"{file} does not hold the weights of the bundle's network: {told}") from error


def _read(file: Path) -> object:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
