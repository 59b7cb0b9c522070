"""The tasks of the convergence benchmark, trained in numpy: handwritten digits, and patients of four hospitals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aggregator.strategy.base import Span

Labels = NDArray[np.int64]
Values = NDArray[np.float64]


def dirichlet_split(
    labels: Labels, sites: int, alpha: float, rng: np.random.Generator, least: int = 16
) -> list[NDArray[np.int64]]:
    """Return each site's indices, classes shared out by Dirichlet(alpha); drawn again until all have `least`."""
    while True:
        parts: list[list[int]] = [[] for _ in range(sites)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet([alpha] * sites))[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= least:
            return [np.array(part) for part in parts]


class Digits:
    """scikit-learn's 8x8 digits over `sites` sites, Dirichlet 0.5, and a perceptron with one hidden layer."""

    def __init__(
        self, seed: int, *, sites: int = 8, hidden: int = 32, steps: int = 10, batch: int = 32, lr: float = 0.25
    ) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        self._rng = np.random.default_rng(seed)
        self._hidden, self._steps, self._batch, self._lr = hidden, steps, batch, lr
        images, labels = load_digits(return_X_y=True)
        train_x, test_x, train_y, test_y = train_test_split(
            (images / 16.0).astype(np.float32), labels, test_size=0.2, stratify=labels, random_state=seed
        )
        self._test = (test_x, test_y)
        parts = dirichlet_split(train_y, sites, 0.5, self._rng)
        self._data = [(train_x[part], train_y[part]) for part in parts]
        self.examples: Sequence[int] = [len(part) for part in parts]

    def _views(self, model: Span) -> tuple[Span, Span, Span, Span]:
        h = self._hidden
        first, rest = model[: 64 * h].reshape(64, h), model[64 * h :]
        return first, rest[:h], rest[h : h + 10 * h].reshape(h, 10), rest[h + 10 * h :]

    def initial(self) -> Span:
        """Return random weights (He) and zero biases."""
        model = np.zeros(75 * self._hidden + 10, np.float32)
        first, _, second, _ = self._views(model)
        first[:] = self._rng.normal(0, np.sqrt(2 / 64), first.shape)
        second[:] = self._rng.normal(0, np.sqrt(2 / self._hidden), second.shape)
        return model

    def train(self, site: int, model: Span) -> Span:
        """Return the model after `steps` steps of SGD on one site's images."""
        images, labels = self._data[site]
        model = model.copy()
        first, first_bias, second, second_bias = self._views(model)
        for _ in range(self._steps):
            chosen = self._rng.choice(len(labels), min(self._batch, len(labels)), replace=False)
            x, y = images[chosen], labels[chosen]
            hidden = np.maximum(x @ first + first_bias, 0)
            logits = hidden @ second + second_bias
            error = np.exp(logits - logits.max(1, keepdims=True))
            error /= error.sum(1, keepdims=True)
            error[np.arange(len(y)), y] -= 1
            error *= self._lr / len(y)
            back = (error @ second.T) * (hidden > 0)
            second -= hidden.T @ error
            second_bias -= error.sum(0)
            first -= x.T @ back
            first_bias -= back.sum(0)
        return model

    def evaluate(self, model: Span) -> dict[str, float]:
        """Return the accuracy on the held-out fifth."""
        first, first_bias, second, second_bias = self._views(model)
        images, labels = self._test
        logits = np.maximum(images @ first + first_bias, 0) @ second + second_bias
        return {"accuracy": float((logits.argmax(1) == labels).mean())}


class Heart:
    """FLamby's Fed-Heart-Disease: four hospitals, logistic regression on 13 features, its split and normalisation.

    `site0` .. `site3` are accuracies on a hospital's own test patients, normalised as at that hospital, `average`
    their mean; `pooled` is the accuracy on all test patients, normalised by all training patients.
    """

    HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

    def __init__(self, folder: Path, seed: int, *, steps: int = 100, batch: int = 4, lr: float = 0.003) -> None:
        from sklearn.model_selection import train_test_split

        self._rng = np.random.default_rng(seed)
        self._steps, self._batch, self._lr = steps, batch, lr
        tables = [_read_hospital(folder / f"processed.{name}.data") for name in self.HOSPITALS]
        levels = {column: np.unique(np.concatenate([t[:, column] for t in tables]))[1:] for column in (2, 6)}
        trains, tests = [], []
        for table in tables:
            features, labels = _encode(table, levels), (table[:, -1] > 0).astype(np.float64)
            # FLamby stratifies where each class has more than two patients; Switzerland has one healthy one.
            strata = labels if min(labels.sum(), (1 - labels).sum()) > 2 else None
            train, test = train_test_split(
                np.arange(len(labels)), train_size=0.66, test_size=0.34, stratify=strata, random_state=43
            )
            trains.append((features[train], labels[train]))
            tests.append((features[test], labels[test]))
        self.examples: Sequence[int] = [len(labels) for _, labels in trains]
        own = [_scale(features) for features, _ in trains]
        everyone = _scale(np.concatenate([features for features, _ in trains]))
        self._data = [(scale(x), y) for scale, (x, y) in zip(own, trains, strict=True)]
        self._tests = [(scale(x), y) for scale, (x, y) in zip(own, tests, strict=True)]
        self._pooled = (everyone(np.concatenate([x for x, _ in tests])), np.concatenate([y for _, y in tests]))

    def initial(self) -> Span:
        """Return weights and a bias uniform within 1 / sqrt(13)."""
        return self._rng.uniform(-(13**-0.5), 13**-0.5, 14).astype(np.float32)

    def train(self, site: int, model: Span) -> Span:
        """Return the model after `steps` steps of SGD, passing over one hospital's patients in shuffled order."""
        features, labels = self._data[site]
        weights = model.astype(np.float64)
        order = np.empty(0, np.int64)
        for _ in range(self._steps):
            if len(order) == 0:
                order = self._rng.permutation(len(labels))
            chosen, order = order[: self._batch], order[self._batch :]
            x = features[chosen]
            error = 1 / (1 + np.exp(-(x @ weights[:13] + weights[13]))) - labels[chosen]
            weights[:13] -= self._lr * (x.T @ error) / len(chosen)
            weights[13] -= self._lr * error.mean()
        return weights.astype(np.float32)

    def evaluate(self, model: Span) -> dict[str, float]:
        """Return `site0` .. `site3`, `average` and `pooled`."""
        sites = [_accuracy(model, x, y) for x, y in self._tests]
        found = {f"site{index}": value for index, value in enumerate(sites)}
        return {**found, "average": float(np.mean(sites)), "pooled": _accuracy(model, *self._pooled)}


def _accuracy(model: Span, features: Values, labels: Values) -> float:
    return float((((features @ model[:13] + model[13]) > 0) == labels).mean())


def _read_hospital(path: Path) -> Values:
    """Return the complete rows without the columns slope, ca and thal, which most hospitals did not record."""
    rows = [line.split(",") for line in path.read_text().splitlines() if line.strip()]
    kept = [row[:10] + row[13:] for row in rows]
    return np.array([[float(cell) for cell in row] for row in kept if "?" not in row])


def _encode(table: Values, levels: dict[int, Values]) -> Values:
    """Return 8 numeric features and the one-hot ones of columns 2 and 6 without their first level."""
    numeric = np.delete(table[:, :10], list(levels), axis=1)
    return np.column_stack(
        [numeric, *(table[:, column] == level for column, found in levels.items() for level in found)]
    )


def _scale(train: Values) -> Callable[[Values], Values]:
    """Return the normalisation by these patients' mean and standard deviation (n - 1)."""
    mean, spread = train.mean(0), train.std(0, ddof=1)
    spread[spread == 0] = 1.0
    return lambda features: (features - mean) / spread
