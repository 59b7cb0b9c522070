"""What a given model is worth: `python -m benchmarks.transfer --data DIR`, with the hippocampus volumes in DIR.

One hospital trains a MONAI bundle on its own volumes. Three others, whose images look different, then train the same
bundle together: once from that hospital's weights (`fledge init-run --bundle --weights`), once from random ones. Both
are run in virtual time by the product's own rules and trainer; the question is which version of the released model is
the first to reach the same mean Dice on volumes that nobody trains on. Leaves with 1 unless the given model needs
fewer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aggregator.strategy.base import Span
from aggregator.strategy.strategies import strategy
from benchmarks.convergence_sim import Federation
from benchmarks.hippocampus_bundle import Volume, split, write_bundle, write_list
from fledge.runs.from_bundle import Chosen, init_bundle_run
from fledge.runs.init_run import load_genesis
from protocol import limits
from worker.api.trainer import Control, training_seed
from worker.api.weights import Weights, write_records
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_bundle import BundleTrainer, bundle_network, bundle_trainer

SECONDS = (1.0, 1.4, 2.0)
"""Virtual time that an update takes each hospital."""
HELD_OUT = 4
"""Volumes of each hospital that nobody trains on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is trained."""

    volumes: int = 24
    """Of each hospital, for training."""
    steps: int = 6
    """Iterations of an update."""
    pretraining: int = 80
    """Iterations of the first hospital."""
    horizon: float = 30.0
    """Virtual time at most."""
    goal: float = 0.78
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How the released models did; the first value is version 0's."""

    start: str
    dice: list[float]

    def reached(self, goal: float) -> int | None:
        """The first version with this Dice."""
        return next((version for version, dice in enumerate(self.dice) if dice >= goal), None)


class BundleTask:
    """The run in `run`, trained by the bundle's own trainers; a model is the vector of its floating tensors."""

    def __init__(self, run: Path, trainers: Sequence[BundleTrainer], judge: BundleTrainer, seed: int) -> None:
        """`judge` has the held-out volumes."""
        genesis = load_genesis(run)
        self._spec, self._payload = genesis.spec, b"".join(genesis.payload())
        self._trainers, self._judge, self._seed = trainers, judge, seed
        self._count = 0
        self.examples = [1] * len(trainers)

    def initial(self) -> Span:
        """Version 0."""
        return self._vector(self._payload)

    def train(self, site: int, model: Span) -> Span:
        """One update, on a hospital's own volumes."""
        self._count += 1
        seed = training_seed(str(self._seed).encode(), "transfer", 0, self._count)
        result = self._trainers[site].train(self._weights(model), Control(run="transfer", version=0, seed=seed))
        self.examples[site] = result.examples
        return self._vector(b"".join(write_records(self._spec, result.weights.__getitem__)))

    def evaluate(self, model: Span) -> dict[str, float]:
        """Mean Dice of both parts of the hippocampus."""
        found = self._judge.evaluate(self._weights(model), Control(run="transfer", version=0))
        print(f"{found.metrics['dice']:.3f}", end=" ", file=sys.stderr, flush=True)  # it takes minutes
        return {"dice": found.metrics["dice"]}

    def _vector(self, payload: bytes) -> Span:
        header = len(self._spec.header)
        return np.frombuffer(payload, np.float32, (self._spec.update_length - header) // 4, header).copy()

    def _weights(self, model: Span) -> Weights:
        whole = self._spec.header + model.tobytes() + self._payload[self._spec.update_length :]

        def records() -> Iterator[bytes]:
            return (whole[at : at + limits.RECORD] for at in range(0, len(whole), limits.RECORD))

        return Weights(self._spec, records)


def pretrain(bundle: Path, data: Path, effort: Effort, file: Path) -> None:
    """Train at one hospital alone, and save the weights as MONAI does."""
    import torch

    trainer = bundle_trainer(bundle, dataset_dir=data, local_steps=effort.pretraining)
    spec, version_0 = spec_and_payload(bundle_network(bundle, seed=effort.seed))
    payload = list(version_0)
    trainer.train(Weights(spec, lambda: iter(payload)), Control(run="alone", version=0, seed=effort.seed))
    torch.save({"model": trainer.model.state_dict()}, file)


def compare(hospitals: Sequence[Sequence[Volume]], effort: Effort, work: Path) -> tuple[Curve, Curve]:
    """The curves from a given model and from scratch; the first of the hospitals gives the model."""
    bundle = write_bundle(work / "bundle")
    places = [
        write_list(work / f"hospital{index}", volumes[HELD_OUT : HELD_OUT + effort.volumes], volumes[:HELD_OUT])
        for index, volumes in enumerate(hospitals)
    ]
    held_out = [volume for volumes in hospitals[1:] for volume in volumes[:HELD_OUT]]
    judged = write_list(work / "judge", held_out[:1], held_out)
    pretrain(bundle, places[0], effort, work / "given.pt")
    trainers = [bundle_trainer(bundle, dataset_dir=place, local_steps=effort.steps) for place in places[1:]]
    judge = bundle_trainer(bundle, dataset_dir=judged)
    curves = []
    for start, weights in (("given model", work / "given.pt"), ("from scratch", None)):
        init_bundle_run(bundle, work / start, name="transfer", chosen=Chosen(weights=weights))
        curves.append(Curve(start=start, dice=_train(BundleTask(work / start, trainers, judge, effort.seed), effort)))
    return curves[0], curves[1]


def _train(task: BundleTask, effort: Effort) -> list[float]:
    federation = Federation(
        task=task,
        strategy=strategy("fedbuff"),
        seconds=SECONDS[: len(task.examples)],
        horizon=effort.horizon,
        stop_at=("dice", effort.goal),
    )
    before = task.evaluate(task.initial())["dice"]
    return [before, *(point.metrics["dice"] for point in federation.run().points)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 unless the given model needs fewer versions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with imagesTr and labelsTr of MSD Task04")
    for name, default in asdict(Effort()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    effort = Effort(**{name: getattr(options, name) for name in asdict(Effort())})
    hospitals = split(options.data, 1 + len(SECONDS))
    if min(map(len, hospitals)) <= HELD_OUT:
        parser.error(
            f"{options.data} holds no hippocampus volumes, or too few; point --data at the folder with imagesTr and "
            "labelsTr of Task04 of the Medical Segmentation Decathlon"
        )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fledge-transfer-") as work:
        given, scratch = compare(hospitals, effort, Path(work))
    good = show(given, scratch, effort)
    print(f"{time.perf_counter() - began:.0f} s")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"effort": asdict(effort), "curves": [asdict(given), asdict(scratch)], "reached": good}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if good else 1


def show(given: Curve, scratch: Curve, effort: Effort) -> bool:
    """Print both curves and which version reached the goal; returns whether the given model was faster."""
    for curve in (given, scratch):
        reached = curve.reached(effort.goal)
        word = f"version {reached}" if reached is not None else f"not within {len(curve.dice) - 1} versions"
        print(f"{curve.start:13} Dice {effort.goal:g}: {word}; " + " ".join(f"{dice:.3f}" for dice in curve.dice))
    first, second = given.reached(effort.goal), scratch.reached(effort.goal)
    good = first is not None and (second is None or first < second)
    print(f"the given model needs fewer versions: {'yes' if good else 'NO'}")
    return good


if __name__ == "__main__":
    raise SystemExit(main())
