"""The weights of `digits`: python examples/pretrain/digits.py OUT

The data are scikit-learn's. Held out is the last fifth in the order of the file, in which each writer's digits stand
together, so that most of their writers were not trained on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from recipe import Budget, train, write_card
from sklearn.datasets import load_digits

EPOCHS, HELD_OUT = 30, 360


def written(folder: Path) -> dict[str, list[dict[str, object]]]:
    """The pictures in a folder, and what to train on and to validate on."""
    images, labels = load_digits(return_X_y=True)
    items: list[dict[str, object]] = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray((image.reshape(8, 8) * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
        items.append({"image": f"{number}.png", "label": int(label)})
    return {"training": items[:-HELD_OUT], "validation": items[-HELD_OUT:]}


def main(out: Path) -> None:
    """Train, measure and write weights and card into `out`."""
    weights = out / "pretrained.safetensors"
    with tempfile.TemporaryDirectory() as data:
        lists = written(Path(data))
        (Path(data) / "dataset.json").write_text(json.dumps(lists))
        found = train("digits", Path(data), Budget(epochs=EPOCHS, lr=0.01, batch=32), weights)
    write_card(
        weights,
        found["val_accuracy"],
        entry="digits",
        metric="val_accuracy",
        measured_on=f"the last {HELD_OUT} pictures in the order of the file, which were not trained on",
        held_out=len(lists["validation"]),
        trained_on=len(lists["training"]),
        data="Optical Recognition of Handwritten Digits (UCI), the 1,797 that come with scikit-learn",
        licence="CC BY 4.0, as the data they were made of",
        citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998",
        recipe="python examples/pretrain/digits.py OUT",
        epochs=EPOCHS,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
