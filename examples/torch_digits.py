"""Handwritten digits with plain torch: what a site writes is the function `trainer`.

Try it alone, with nothing but this file:

    python examples/torch_digits.py

In a federation, `fledge init-run examples.torch_digits:trainer -o run` makes version 0, and every worker's
configuration names the same factory (`trainer = "examples.torch_digits:trainer"`) with its own options.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from fledge import privacy_filters, rehearse
from fledge.trainers.torch import TorchTrainer, accuracy


def trainer(hospital: int = 0, hospitals: int = 4) -> TorchTrainer:
    """A model, a dataset and a loss: one hospital's share of scikit-learn's digits, a fifth of all held out."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    number = torch.arange(len(labels))
    held_out = number % 5 == 0
    own = (number % hospitals == hospital) & ~held_out
    return TorchTrainer(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        TensorDataset(images[own], labels[own]),
        nn.functional.cross_entropy,
        lr=0.25,
        local_steps=30,
        evaluate_on=TensorDataset(images[held_out], labels[held_out]),
        metrics={"accuracy": accuracy},
    )


if __name__ == "__main__":
    torch.manual_seed(1)
    for done in rehearse(trainer(), privacy_filters({"name": "clip", "norm": 5.0}), versions=8):
        print(
            f"version {done.version}: accuracy {done.metrics['accuracy']:.3f}; trained {done.steps} steps "
            f"in {done.seconds:.2f} s, the delta's norm is {done.norm:.2f}"
        )
