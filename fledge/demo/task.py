"""What the demo trains: scikit-learn's handwritten digits, spread unevenly over hospitals, and a small perceptron.

This is also what training code looks like that needs no torch: a factory that `fledge init-run` and every worker call,
here `fledge.demo.task:trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fledge import Control, EvaluationResult
from fledge import Weights as StreamedWeights
from fledge.trainers.numpy import NumpyTrainer
from protocol.cipher import Octets
from worker.trainers.initial import spec_and_payload

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Weights = dict[str, NDArray[np.float32]]

HIDDEN = 128
STEPS = 10
BATCH = 32
RATE = 0.1
SKEW = 0.5
"""Dirichlet concentration of the classes over the hospitals: at 0.5 most see few of some digits."""
LEAST = 16
"""Images every hospital has at least."""


@dataclass(frozen=True, slots=True)
class DemoImages:
    """Images of 64 pixels, whose mean is about 0, and which of ten digits they show."""

    images: Images
    labels: Labels


@dataclass(frozen=True, slots=True)
class Digits:
    """The data: what each hospital has, and a fifth of all that no hospital trains on."""

    hospitals: tuple[DemoImages, ...]
    held_out: DemoImages

    @property
    def pooled(self) -> DemoImages:
        """All hospitals' data in one place, which is what no one may do."""
        return DemoImages(
            np.concatenate([own.images for own in self.hospitals]),
            np.concatenate([own.labels for own in self.hospitals]),
        )


@lru_cache(maxsize=4)
def digits(seed: int, hospitals: int) -> Digits:
    """Split the digits: a stratified fifth is held out, the rest spread by Dirichlet; a pure function of the seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        ((images - 5) / 8).astype(np.float32), labels, test_size=0.2, stratify=labels, random_state=seed
    )
    dice = np.random.default_rng(seed)
    while True:
        parts: list[list[int]] = [[] for _ in range(hospitals)]
        for digit in range(10):
            of_digit = dice.permutation(np.flatnonzero(train_y == digit))
            cuts = (np.cumsum(dice.dirichlet([SKEW] * hospitals))[:-1] * len(of_digit)).astype(int)
            for part, piece in zip(parts, np.split(of_digit, cuts), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= LEAST:
            break
    return Digits(tuple(DemoImages(train_x[part], train_y[part]) for part in parts), DemoImages(test_x, test_y))


def initial(seed: int) -> Weights:
    """Random weights (He) and zero biases."""
    dice = np.random.default_rng(seed)
    return {
        "hidden.weight": dice.normal(0, np.sqrt(2 / 64), (64, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": dice.normal(0, np.sqrt(2 / HIDDEN), (HIDDEN, 10)).astype(np.float32),
        "output.bias": np.zeros(10, np.float32),
    }


def descend(weights: Weights, data: DemoImages, steps: int, dice: np.random.Generator) -> None:
    """Take `steps` steps of SGD in place."""
    for _ in range(steps):
        chosen = dice.choice(len(data.labels), min(BATCH, len(data.labels)), replace=False)
        x, y = data.images[chosen], data.labels[chosen]
        hidden = np.maximum(x @ weights["hidden.weight"] + weights["hidden.bias"], 0)
        error = _softmax(hidden @ weights["output.weight"] + weights["output.bias"])
        error[np.arange(len(y)), y] -= 1
        error *= RATE / len(y)
        back = (error @ weights["output.weight"].T) * (hidden > 0)
        weights["output.weight"] -= hidden.T @ error
        weights["output.bias"] -= error.sum(0)
        weights["hidden.weight"] -= x.T @ back
        weights["hidden.bias"] -= back.sum(0)


def accuracy(weights: Weights, data: DemoImages) -> float:
    """The share of images whose digit is recognised."""
    hidden = np.maximum(data.images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    scores = hidden @ weights["output.weight"] + weights["output.bias"]
    return float((scores.argmax(1) == data.labels).mean())


def loss(weights: Weights, data: DemoImages) -> float:
    """The mean cross-entropy."""
    hidden = np.maximum(data.images @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    shares = _softmax(hidden @ weights["output.weight"] + weights["output.bias"])
    return float(-np.log(np.maximum(shares[np.arange(len(data.labels)), data.labels], 1e-12)).mean())


def _softmax(scores: Images) -> Images:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    result: Images = powers / powers.sum(1, keepdims=True)
    return result


def from_records(records: Iterator[Octets]) -> Weights:
    """The weights a model's payload holds."""
    spec, _ = spec_and_payload(initial(0))
    return dict(StreamedWeights(spec, lambda: records).tensors())


def trainer(seed: int, hospitals: int, hospital: int = 0, seconds: float = 0.0) -> NumpyTrainer:
    """The factory that `fledge init-run` and every worker call.

    Args:
        hospital: which of the hospitals this one is, from 0.
        seconds: what an update takes on this hospital's machine; the time the real training leaves is waited.
    """
    own = digits(seed, hospitals).hospitals[hospital]
    weights = initial(seed)

    def fit(control: Control) -> int:
        began = time.monotonic()
        descend(weights, own, STEPS, np.random.default_rng(control.seed))
        came_to = loss(weights, own)
        for tenth in range(1, 11):
            control.wait(seconds * tenth / 10 - (time.monotonic() - began))
            control.progress(tenth / 10, loss=came_to)
        return STEPS

    def evaluate(control: Control) -> EvaluationResult:
        return EvaluationResult(examples=len(own.labels), metrics={"accuracy": accuracy(weights, own)})

    return NumpyTrainer(weights, fit, examples=len(own.labels), evaluate=evaluate)
