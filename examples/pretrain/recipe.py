"""What the recipes share: a zoo entry trained by MONAI's own runner for a fixed time, measured once, and written down.

Nothing is chosen by the held-out data: the weights are those of the last step. What is measured is what is shipped,
rounded to 16 bits.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from monai.bundle.workflows import ConfigWorkflow
from monai.utils.misc import set_determinism
from safetensors.torch import save

from fledge.runs.zoo import new_bundle
from worker.monai.pretrained import WeightsCard

SEED = 0
PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train, and how."""

    epochs: int
    lr: float
    """The learning rate rises to it and falls to nothing, in one cycle."""
    batch: int
    overrides: Mapping[str, object] = field(default_factory=dict)


def train(entry: str, data: Path, budget: Budget, weights: Path) -> dict[str, float]:
    """Train a zoo entry on `data`, its `dataset_dir`, and write its weights; what its evaluator measures of them."""
    with tempfile.TemporaryDirectory() as work:
        bundle = Path(work) / entry
        new_bundle(bundle, entry)
        return _train(bundle, data, budget, weights)


def _train(bundle: Path, data: Path, budget: Budget, weights: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    set_determinism(SEED)
    cycle = {
        "_target_": "torch.optim.lr_scheduler.OneCycleLR",
        "optimizer": "@optimizer",
        "max_lr": budget.lr,
        "total_steps": f"${budget.epochs} * len(@train#dataloader)",
    }
    handlers = [
        {"_target_": "LrScheduleHandler", "lr_scheduler": "@cycle", "epoch_level": False, "print_lr": False},
        {
            "_target_": "StatsHandler",
            "tag_name": "loss",
            "iteration_log": False,
            "output_transform": "$lambda out: out[0]['loss']",
        },
    ]
    workflow = ConfigWorkflow(
        str(bundle / "configs/train.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        **{
            "bundle_root": str(bundle),
            "dataset_dir": str(data),
            "cycle": cycle,
            "train#handlers": handlers,
            "train#dataloader#batch_size": budget.batch,
            "train#trainer#max_epochs": budget.epochs,
            "validate#handlers": [],
            **budget.overrides,
        },
    )
    workflow.initialize()
    workflow.run()
    network = workflow.parser.get_parsed_content("network")
    rounded = {name: tensor.detach().cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(save(rounded))
    network.load_state_dict(rounded)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    for name, details in evaluator.state.metric_details.items():
        print(
            f"{name} by class: {details.nanmean(0).tolist()}; standard deviation over items: {details.std(0).tolist()}"
        )
    return {name: float(value) for name, value in evaluator.state.metrics.items()}


def write_card(weights: Path, value: float, **said: object) -> None:
    """Write the card beside the weights; what can be computed of them is added to what is `said`."""
    raw = weights.read_bytes()
    known = {"value": round(value, 4), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "seed": SEED}
    card = WeightsCard.model_validate({**said, **known, "versions": {name: version(name) for name in PACKAGES}})
    weights.with_suffix(".json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    print(f"{weights}: {card.told()}, {card.bytes} bytes")
