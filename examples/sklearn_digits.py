"""Handwritten digits with scikit-learn, for environments without torch: what a site writes is the function `trainer`.

Try it alone, with nothing but this file:

    python examples/sklearn_digits.py

In a federation, `fledge init-run examples.sklearn_digits:trainer -o run` makes version 0, and every worker's
configuration names the same factory (`trainer = "examples.sklearn_digits:trainer"`) with its own options.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from fledge import privacy_filters, rehearse
from fledge.trainers.numpy import EstimatorTrainer


def trainer(hospital: int = 0, hospitals: int = 4) -> EstimatorTrainer:
    """Logistic regression on one hospital's share of the digits, a fifth of all held out."""
    images, labels = load_digits(return_X_y=True)
    number = np.arange(len(labels))
    held_out = number % 5 == 0
    own = (number % hospitals == hospital) & ~held_out
    return EstimatorTrainer(
        SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, alpha=1e-4),
        images[own] / 16,
        labels[own],
        classes=range(10),
        evaluate_on=(images[held_out] / 16, labels[held_out]),
    )


if __name__ == "__main__":
    for done in rehearse(trainer(), privacy_filters({"name": "clip", "norm": 5.0}), versions=8):
        print(
            f"version {done.version}: accuracy {done.metrics['accuracy']:.3f}; trained {done.steps} steps "
            f"in {done.seconds:.2f} s, the delta's norm is {done.norm:.2f}"
        )
