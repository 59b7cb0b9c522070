"""What can be wrong with a site's data or with a bundle: one sentence in the site's case, a word for everybody else."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fledge.runs.code_archive import archive
from fledge.runs.from_bundle import bundle_files, init_bundle_run
from protocol.messages import Update
from tests.support import monai_bundles as bundles
from tests.support.bundle_run import Federation
from tests.support.monai_marks import MONAI
from tests.support.running_worker import Seen, start, stop
from worker.policy import OPEN
from worker.service.service import WorkerService
from worker.storage.incidents import Incidents

pytestmark = MONAI

PATIENT = "patient-4711"
"""Stands in the path of everything that a site has; nobody else may ever read it."""
Shape = Callable[[Path], Path]


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Something wrong, and what is to be said of it."""

    word: str
    """What leaves the site."""
    says: str
    """Part of the sentence in the site's case."""
    bundle: Shape = bundles.spleen
    data: Shape = bundles.volumes
    spoil: Callable[[Path], object] = lambda data: None
    """Done to the site's data."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Other values in the code's train.json; None takes an id out."""
    options: Mapping[str, Any] = field(default_factory=dict)


def raising(error: str) -> dict[str, Any]:
    """A transform that raises."""
    return {"_target_": "Lambdad", "keys": "image", "func": f"$lambda image: (_ for _ in ()).throw({error})"}


def brats_data(folder: Path) -> Path:
    return bundles.volumes(folder, 3, channels=4, classes=5)


def halve(file: Path) -> None:
    """What a copy that broke off leaves."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


of_brats = partial(Bad, bundle=bundles.brats, data=brats_data, word="data")
BAD = {
    "missing file": of_brats(
        spoil=lambda data: (data / "images" / "case0.nii.gz").unlink(),
        says="case0.nii.gz cannot be read, and the bundle's list of data names it; put the file there, or correct",
    ),
    "damaged file": of_brats(
        spoil=lambda data: (data / "images" / "case0.nii.gz").write_bytes(b"not an image"),
        says="case0.nii.gz is not a gzip file; look at what this transform was given",
    ),
    "half a file": of_brats(
        spoil=lambda data: halve(data / "images" / "case0.nii.gz"),
        says="failed in LoadImaged of FOLDER/images/case0.nii.gz and FOLDER/labels/case0.nii.gz: EOFError: Compressed",
    ),
    "half a file, read by another process": of_brats(
        spoil=lambda data: halve(data / "images" / "case0.nii.gz"),
        options={"overrides": {"train#dataloader#num_workers": 1}},
        says="failed in LoadImaged: EOFError: Compressed file ended",
    ),
    "crop": Bad(
        config={"train#random_transforms#0#spatial_size": [64, 64, 64]},
        word="data",
        says="failed in RandCropByPosNegLabeld: ValueError: The size of the proposed random crop ROI is larger than",
    ),
    "no data": Bad(
        spoil=lambda data: [file.unlink() for file in data.rglob("*.nii.gz")],
        word="data",
        says="finds no training data below dataset_dir; correct it in the site's options",
    ),
    "channels": Bad(
        data=lambda folder: bundles.volumes(folder, channels=3),
        word="data",
        says="takes images with 1 channels, and an image here has 3; give it the images it was made for",
    ),
    "labels": Bad(
        bundle=bundles.films,
        data=bundles.pictures,
        spoil=lambda data: (data / "1").rename(data / "4"),
        word="data",
        says="a label here has the value 4 that is none of the classes that the bundle's network tells apart; correct",
    ),
    "labels of voxels": Bad(
        data=lambda folder: bundles.volumes(folder, classes=6),
        word="data",
        says="that is none of the classes that the bundle's network tells apart; correct the labels",
    ),
    "loss": Bad(
        config={"loss": "$lambda p, t: p.sum() * float('nan')"},
        word="diverged",
        says="the loss is nan after 1 iterations; nothing was sent. Try a smaller learning rate",
    ),
    "fewer images than a batch": Bad(
        config={"train#dataloader#batch_size": 8, "train#dataloader#drop_last": True},
        word="data",
        says="the bundle makes batches of 8, drops incomplete ones, and has only 4 to train on here; add images, or",
    ),
    "nothing learned": Bad(
        bundle=bundles.brats,
        data=lambda folder: bundles.volumes(folder, 3, channels=4, classes=5),
        config={"optimizer#params": "$[torch.nn.Parameter(torch.zeros(1))]"},
        word="unchanged",
        says="and every shared tensor is as it was before; nothing was sent. Look whether the trainer returns the very",
    ),
    "GPU memory": Bad(
        config={"loss": raising("torch.OutOfMemoryError('CUDA out of memory')")["func"].replace("image", "p, t", 1)},
        word="memory",
        says="the memory did not suffice for the bundle's training; make the batch or the crop smaller",
    ),
    "main memory": Bad(
        config={"train#random_transforms": [raising("MemoryError()")]},
        word="memory",
        says="the memory did not suffice for making the bundle's trainer; make the batch or the crop smaller",
    ),
    "required id": Bad(
        config={"train#inferer": None, "dataset_dir": None},
        word="config",
        says="the bundle lacks the required dataset_dir, train#inferer in train.json; a MONAI bundle that trains has",
    ),
    "module": Bad(
        config={"network_def#_target_": "clara_train.networks.Net"},
        word="trainer",
        says="the bundle needs clara_train.networks.Net, which is not installed here; install it where the worker runs",
    ),
    "reference": Bad(
        config={"optimizer#lr": "@rate"},
        word="trainer",
        says="the bundle's configuration refers to rate, which it does not have",
    ),
    "misspelt option": Bad(
        options={"local_epoch": 2},
        word="config",
        says="there is no option 'local_epoch' for a MONAI bundle; there are dataset_dir, overrides, local_epochs",
    ),
    "misspelt override": Bad(
        options={"overrides": {"train#dataloadr#batch_size": 2}},
        word="config",
        says="the bundle has no 'train#dataloadr#batch_size', which overrides in the site's options names",
    ),
}


class Watched(Federation):
    """A hub that tells what it heard."""

    def told(self) -> list[Any]:
        """Everything that reached the aggregator, opened."""
        lanes = (self.events, self.inbound, self.requests)
        return [self.body(lane.get()) for lane in lanes for _ in range(lane.qsize())]


def changed(files: dict[str, bytes], changes: Mapping[str, Any]) -> dict[str, bytes]:
    """A bundle's files with other values in its configuration."""
    config = json.loads(files["configs/train.json"])
    for name, value in changes.items():
        *above, last = name.split("#")
        place = config
        for part in above:
            place = place[int(part) if isinstance(place, list) else part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return {**files, "configs/train.json": json.dumps(config).encode()}


def federation(name: str, folder: Path, bundle: Shape, changes: Mapping[str, Any]) -> Watched:
    made = bundle(folder / "bundle")
    init_bundle_run(made, folder / "run", name="r")
    sys.path.remove(str(made))
    return Watched(name, folder / "run", archive(changed(bundle_files(made), changes)))


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_a_sentence_at_the_site_and_a_word_elsewhere(
    name: str,
    workers: list[WorkerService],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad = BAD[name]
    data = bad.data(tmp_path / PATIENT)
    bad.spoil(data)
    hub = federation(name.replace(" ", "-"), tmp_path, bad.bundle, bad.config)
    seen = Seen()
    with capture_logs() as logs:
        options = {"dataset_dir": str(data), **bad.options}
        start(hub, tmp_path / "state", None, workers, options=lambda run: options, on_event=seen, heartbeat=0.1)
        assert hub.deploy(hub.code_of_run).ok
        hub.announce(hub.version(0, bundle=hub.digest))
        seen.wait("blocked", 0)
        event = seen.events[-1]
        while (sign := hub.body(hub.events.get(timeout=10))).case == "-":
            pass
        stop(workers.pop())
    assert event.code == sign.code == bad.word
    sentence = Incidents(tmp_path / "state" / "cases").text(sign.case).splitlines()[2]
    assert bad.says.replace("FOLDER", str(data)) in sentence
    told = hub.told()
    assert not [each for each in told if isinstance(each, Update)]
    shown = [*(repr(each) for each in (sign, *told, *seen.events)), str(logs), caplog.text, *capfd.readouterr()]
    assert not [text for text in shown for private in (PATIENT, "case0", "film0") if private in text]
    hub.close()


def test_memory_that_the_system_refuses_is_told_like_any_other(workers: list[WorkerService], tmp_path: Path) -> None:
    """For real: the crop is too large for what this process may have."""
    data = bundles.volumes(tmp_path / "data")
    pad = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [1280, 1280, 1280]}
    hub = federation("limit", tmp_path, bundles.spleen, {"train#random_transforms": [pad]})
    seen = Seen()
    start(hub, tmp_path / "state", None, workers, options=lambda run: {"dataset_dir": str(data)}, on_event=seen)
    assert hub.deploy(hub.code_of_run).ok
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        hub.announce(hub.version(0, bundle=hub.digest))
        seen.wait("blocked", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert seen.events[-1].code == "memory"
    told = Incidents(tmp_path / "state" / "cases").text(seen.events[-1].case)
    assert "the memory did not suffice for making the bundle's trainer" in told.splitlines()[2]
    hub.close()


def test_code_that_the_site_has_not_allowed_is_neither_kept_nor_evaluated(
    workers: list[WorkerService], tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    hub = federation(
        "undeclared",
        tmp_path,
        bundles.spleen,
        {"initialize": [f"$__import__('pathlib').Path({str(touched)!r}).touch()"]},
    )
    data = bundles.volumes(tmp_path / PATIENT)
    policy = OPEN.model_copy(update={"code": (hashlib.sha256(b"something else").hexdigest(),)})
    seen = Seen()
    options = {"dataset_dir": str(data)}
    start(hub, tmp_path / "state", None, workers, policy=policy, options=lambda run: options, on_event=seen)
    reply = hub.deploy(hub.code_of_run)
    assert (reply.ok, reply.reason) == (False, "code_not_listed")
    assert hub.digest.hex() in reply.text
    assert "have the code looked at, then add the digest to `code` there" in reply.text
    assert PATIENT not in repr(reply)
    hub.announce(hub.version(0, bundle=hub.digest))
    seen.wait("waiting", 0)
    assert (seen.events[-1].code, seen.events[-1].case) == ("not_deployed", "-")
    assert not touched.exists()
    stop(workers.pop())
    # The same code, once somebody has looked at it, is evaluated: the test would see it.
    allowed = OPEN.model_copy(update={"code": (hub.digest.hex(),)})
    start(hub, tmp_path / "state", None, workers, policy=allowed, options=lambda run: options)
    assert hub.deploy(hub.code_of_run).ok
    assert np.isfinite(hub.delta(hub.inbound.get(timeout=30))).all()
    assert touched.exists()
    hub.close()
