"""The model as NVIDIA FLARE's PyTorch recipe wants it: a module whose parameters are the layers."""

from __future__ import annotations

import torch

from benchmarks.peers import layers


class Layers(torch.nn.Module):
    """Version 0."""

    def __init__(self, size_mb: int) -> None:
        super().__init__()
        for name, weight in layers.initial(size_mb).items():
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(weight)))
