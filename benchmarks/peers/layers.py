"""The model and the training of the other systems: the layers of `benchmarks.pipeline_model`, with numpy alone.

The weights begin as random numbers and every site adds its own noise: Flower sends equal chunks once, and of equal
numbers it would send nearly nothing, which happens with no trained model.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from benchmarks.pipeline_model import Array, add, noise, shapes


def initial(size_mb: int) -> dict[str, Array]:
    """Version 0."""
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes(size_mb).items()}


def train(weights: Iterable[Array], site: int) -> None:
    """One step at a site, in place."""
    add(weights, noise(site))
