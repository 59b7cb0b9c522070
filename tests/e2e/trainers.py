"""A trainer for the end-to-end tests: numpy only, deterministic, as fast and as large as its options say."""

from __future__ import annotations

import numpy as np

from worker.api.trainer import Control, EvaluationResult
from worker.trainers.numpy import NumpyTrainer

STEPS = 4


def trainer(*, site: int = 0, elements: int = 4096, seconds: float = 0.05) -> NumpyTrainer:
    """Pulls a vector toward the site's own target; `elements` float32 values, `seconds` for each training."""
    arrays = {
        "weight": np.zeros((elements,), np.float32),
        "bias": np.zeros((7,), np.float32),
        "running_mean": np.zeros((7,), np.float32),
        "batches": np.zeros((), np.int64),
    }
    target = np.random.default_rng(site).normal(0, 1, 1024).astype(np.float32)

    def fit(control: Control) -> int:
        dice = np.random.default_rng(control.seed)
        for step in range(STEPS):
            control.wait(seconds / STEPS)
            head = arrays["weight"][: target.size]
            head += np.float32(0.1) * (target[: head.size] - head)
            arrays["bias"] += dice.normal(0, 0.01, 7).astype(np.float32)
            arrays["running_mean"] += np.float32(0.01)
            control.progress((step + 1) / STEPS)
        return STEPS

    def evaluate(control: Control) -> EvaluationResult:
        head = arrays["weight"][: target.size]
        return EvaluationResult(examples=10, metrics={"distance": float(np.abs(head - target[: head.size]).mean())})

    return NumpyTrainer(arrays, fit, examples=10 + site, evaluate=evaluate, buffers=("running_mean",))
