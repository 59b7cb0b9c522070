"""The weights of `hippocampus-mr`: python examples/pretrain/hippocampus.py TASK04 OUT [EPOCHS]

TASK04 is the unpacked Task04_Hippocampus of the Medical Segmentation Decathlon (medicaldecathlon.com), with imagesTr
and labelsTr. Two volumes are of one patient: in every pair of numbers 2k - 1 and 2k the intensities agree, in other
neighbours they do not. Each fifth patient is held out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipe import Budget, train, write_card

EPOCHS = 14
FASTER = "$@network_def.to(@device, memory_format=torch.channels_last_3d)"


def listed(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The volumes to train on, and those held out to validate on."""
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for path in sorted((folder / "labelsTr").glob("hippocampus_*.nii.gz")):
        item = {name: f"{place}/{path.name}" for name, place in (("image", "imagesTr"), ("label", "labelsTr"))}
        lists["training" if patient(path.name) % 5 else "validation"].append(item)
    return lists


def patient(name: str) -> int:
    """Whose volume it is."""
    return (int(name.removesuffix(".nii.gz").rpartition("_")[2]) + 1) // 2


def main(folder: Path, out: Path, epochs: int) -> None:
    """Train, measure and write weights and card into `out`."""
    lists = listed(folder)
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        data.mkdir()
        for name in ("imagesTr", "labelsTr"):
            (data / name).symlink_to((folder / name).resolve())
        (data / "dataset.json").write_text(json.dumps(lists))
        weights = out / "pretrained.safetensors"
        budget = Budget(epochs=epochs, lr=0.004, batch=2, overrides={"network": FASTER})
        found = train("hippocampus-mr", data, budget, weights)
    write_card(weights, found["val_mean_dice"], **said(lists, epochs))


def said(lists: Mapping[str, Sequence[Mapping[str, str]]], epochs: int) -> dict[str, object]:
    """What the card says beside figures."""
    return {
        "entry": "hippocampus-mr",
        "metric": "val_mean_dice",
        "measured_on": f"volumes of {len({patient(each['image']) for each in lists['validation']})} patients that were "
        "not trained on (of their numbers n, (n + 1) // 2 is a multiple of 5): the mean of the anterior and the "
        "posterior hippocampus",
        "held_out": len(lists["validation"]),
        "trained_on": len(lists["training"]),
        "data": "Medical Segmentation Decathlon, Task04 Hippocampus, Vanderbilt University Medical Center",
        "licence": "CC BY-SA 4.0, as the data they were made of",
        "citation": "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022); "
        "Simpson et al., arXiv 1902.09063 (2019)",
        "recipe": f"python examples/pretrain/hippocampus.py Task04_Hippocampus OUT {epochs}",
        "epochs": epochs,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else EPOCHS)
