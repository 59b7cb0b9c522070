"""The model that the pipeline benchmark trains, with numpy alone: also what a script without fledge would hold.

    python -m benchmarks.pipeline_model SIZE_MB STEPS

holds the model, takes the steps and prints its own peak memory: the yardstick for a worker's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_PART = 1 << 18
_LAYER = 16 << 20


class NoiseModel:
    """Float32 layers of 64 MiB, or with size 0 a digits-sized perceptron; training adds small noise in place."""

    def __init__(self, size_mb: int) -> None:
        self.weights = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes(size_mb).items()}
        self._noise = noise(7)

    def train(self) -> None:
        """One step over every weight; no temporary is larger than 1 MiB."""
        add(self.weights.values(), self._noise)


def noise(seed: int) -> Array:
    """What one step adds to every 1 MiB of the weights."""
    return np.random.default_rng(seed).normal(0, 1e-3, _PART).astype(np.float32)


def add(weights: Iterable[Array], noise: Array) -> None:
    """Add noise to every weight, in place."""
    for weight in weights:
        flat = weight.reshape(-1)
        for start in range(0, flat.size, _PART):
            part = flat[start : start + _PART]
            np.add(part, noise[: part.size], out=part)


def shapes(size_mb: int) -> dict[str, tuple[int, ...]]:
    """The layers of a model of this size."""
    if size_mb == 0:
        return {
            "hidden.weight": (64, 32),
            "hidden.bias": (32,),
            "output.weight": (32, 10),
            "output.bias": (10,),
        }
    elements = size_mb * 1_000_000 // 4
    sizes = [min(_LAYER, elements - start) for start in range(0, elements, _LAYER)]
    return {f"layer{index}": (size,) for index, size in enumerate(sizes)}


def peak_kib(pid: int | str = "self", field: str = "VmHWM") -> int:
    """A process's peak resident memory in KiB (`field` VmRSS: what is resident now)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"process {pid} has ended")


def cpu_s(pid: int) -> float:
    """CPU seconds that all threads of a process have used, its own and the kernel's for it."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Hold, train, tell."""
    model = NoiseModel(int(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        model.train()
    print(peak_kib())


if __name__ == "__main__":
    main()
