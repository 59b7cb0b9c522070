"""A hospital infers with what its run has learned: without any network, and as the bundle does by itself."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import structlog
import torch
from monai.bundle.workflows import ConfigWorkflow
from typer.testing import CliRunner

from broker.blobs.cache import CachedBlobs
from deploy.keyfiles import write_identity
from fledge.cli.app import app
from fledge.inference import ABOUT, InferenceRequest, infer
from fledge.runs.code_archive import load_code
from fledge.runs.from_bundle import init_bundle_run
from fledge.runs.init_run import load_genesis
from protocol.errors import ConfigError, Missing, StateError, StoreError, Tampered, WireError
from protocol.messages import Kind, RunState
from protocol.spec import ModelSpec
from tests.support import monai_bundles as bundles
from tests.support.fake_aggregator import RUN, Researchers
from tests.support.monai_marks import MONAI
from tests.support.running_worker import start, stop
from tests.support.waiting import eventually
from worker.bundles.inference import BundleInference
from worker.domain.effects import KeepLast
from worker.domain.events import NotKept
from worker.domain.state import RunRow
from worker.pipeline.training import Training
from worker.rules.decisions import Decisions
from worker.rules.fetching import LastVersions
from worker.service.service import WorkerService
from worker.storage.code_store import CodeStore
from worker.storage.kept_versions import NEWEST, KeptVersion, KeptVersions, best, chosen
from worker.trainers.initial import spec_and_payload
from worker.trainers.monai_bundle import bundle_network, bundle_trainer

pytestmark = MONAI


def inference(network: dict[str, Any]) -> dict[str, Any]:
    """How a bundle infers: its own list of images, results turned back to where the images were, and written."""
    return {
        "imports": ["$import glob"],
        "bundle_root": "/workspace/bundle",
        "dataset_dir": "/workspace/data",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [1.25, 1.25, 1.25]},
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in sorted(glob.glob(@dataset_dir + '/images/*.nii.gz'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.5, "mode": "gaussian"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "resample": False,
                    "print_log": False,
                },
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$monai.utils.set_determinism(seed=1)"],
        "run": ["$@evaluator.run()"],
    }


def written(folder: Path) -> dict[str, bytes]:
    """The voxels of every result, by its place."""
    return {
        path.relative_to(folder).as_posix(): np.asanyarray(nibabel.load(path).dataobj).tobytes()
        for path in sorted(folder.rglob("*.nii.gz"))
    }


class Hospital(Researchers):
    """A hub with one site, whose kit lies in a folder and whose worker keeps what it fetches."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder, self.kit, self.state = folder, folder / "kit", folder / "kit" / "state"
        self.bundle, self.data = bundles.spleen(folder / "bundle"), bundles.volumes(folder / "data", 3)
        network = json.loads((self.bundle / "configs" / "train.json").read_text())["network_def"]
        (self.bundle / "configs" / "inference.json").write_text(json.dumps(inference(network)))
        init_bundle_run(self.bundle, folder / "run", name=RUN)
        self.spec: ModelSpec = load_genesis(folder / "run").spec
        self.code_of_run = load_code(folder / "run")
        self.digest = hashlib.sha256(self.code_of_run).digest()
        self.store: Any = CachedBlobs(self.store, self.state / "cache", 2**28)
        self.spec_record = self._put_record(self._seal_blob(Kind.SPEC, 0, self.spec.to_bytes(), b""))
        self.options = {"dataset_dir": str(self.data), "keep_local": "batchnorm", "local_steps": 2}
        write_identity(self.kit / "site.keys", self.site)
        (self.kit / "registry.bin").write_bytes(self.registry_record)
        lines = [
            'federation = "test"\nbroker = "memory:nowhere"\nstore = "s3://nowhere/bucket"\n',
            f'root = "{bytes(self.root.sign.verify_key).hex()}"\n[options]\n',
            *(f"{key} = {json.dumps(value)}\n" for key, value in self.options.items()),
        ]
        (self.kit / "worker.toml").write_text("".join(lines))

    def weights(self, number: int) -> bytes:
        """Those of a version: of a network of its own."""
        return b"".join(spec_and_payload(bundle_network(self.bundle, seed=number))[1])

    def version(self, number: int, *arguments: Any, **more: Any) -> bytes:
        self.payload = self.weights(number)
        return super().version(number, *arguments, bundle=self.digest, evaluate=True, **more)

    def model(self, value: float) -> bytes:
        """Of the version that is being made."""
        return self.payload


@pytest.fixture
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hospital]:
    (tmp_path / "kit" / "state").mkdir(parents=True)
    made = Hospital(request.node.name[:60], tmp_path)
    yield made
    made.close()


def alone(hospital: Hospital, version: int, images: Path, output: Path) -> None:
    """The bundle's own inference in MONAI, with a version's weights and the site's own batch normalisation."""
    network = bundle_network(hospital.bundle, seed=version)
    root = hospital.folder / "by itself"
    shutil.copytree(hospital.bundle, root, dirs_exist_ok=True)
    (root / "models").mkdir(exist_ok=True)
    torch.save({"model": network.state_dict()}, root / "models" / "model.pt")
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        workflow_type="infer",
        bundle_root=str(root),
        dataset_dir=str(images),
        output_dir=str(output),
    )
    workflow.initialize()
    workflow.run()


def test_a_site_infers_with_its_runs_versions_as_the_bundle_does(
    hospital: Hospital, workers: list[WorkerService], tmp_path: Path
) -> None:
    hospital.options.pop("keep_local")
    text = (hospital.kit / "worker.toml").read_text()
    (hospital.kit / "worker.toml").write_text(text.replace('keep_local = "batchnorm"\n', ""))
    start(hospital, hospital.state, None, workers, options=lambda run: hospital.options)
    assert hospital.deploy(hospital.code_of_run).ok
    scores = {}
    for number in (0, 1):
        hospital.announce(hospital.version(number))
        evaluation = hospital.next_message()
        scores[number] = hospital.body(evaluation).metrics["val_mean_dice"]
        hospital.next_message()
    last = hospital.version(2)
    hospital.announce(last)
    hospital.announce(hospital.head(last, 2, RunState.STOPPED))
    kept = KeptVersions(hospital.state / "models")
    scores[2] = hospital.body(hospital.next_message()).metrics["val_mean_dice"]
    eventually(
        lambda: [each.version for each in kept.of(RUN) if each.score is not None] == [0, 1, 2],
        "the last version is kept, and was measured",
    )
    stop(workers.pop())
    hospital.close()  # from here on there is nothing but the kit's folder

    versions = {each.version: each for each in kept.of(RUN)}
    assert {number: each.score for number, each in versions.items()} == scores
    winner = max(scores, key=lambda number: (scores[number], number))
    for model, version in (("best", winner), ("global", 2), ("0", 0)):
        done = infer(hospital.kit / "worker.toml", InferenceRequest(RUN, model, hospital.data, tmp_path / model))
        assert (done.version, done.images, done.own_list) == (version, 3, True)
        alone(hospital, version, hospital.data, tmp_path / f"{model} alone")
        mine = written(tmp_path / model)
        assert len(mine) == 3
        assert mine == written(tmp_path / f"{model} alone")
        assert json.loads((tmp_path / model / ABOUT).read_text())["version"] == version
    assert written(tmp_path / "0") != written(tmp_path / "global")
    listed = CliRunner().invoke(app, ["site", "models", "--kit", str(hospital.kit)])
    assert [line.split("  ")[1] for line in listed.output.splitlines()] == ["version 0", "version 1", "version 2"]
    assert listed.output.splitlines()[winner].endswith("best")


def test_what_the_site_keeps_to_itself_is_part_of_its_model(
    hospital: Hospital, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hospital, hospital.state, None, workers, options=lambda run: hospital.options)
    assert hospital.deploy(hospital.code_of_run).ok
    hospital.announce(hospital.version(0))
    hospital.next_message(), hospital.next_message()
    stop(workers.pop())
    loose = tmp_path / "loose"
    loose.mkdir()
    shutil.copy(hospital.data / "images" / "case1.nii.gz", loose / "$print('case').nii.gz")
    command = ["infer", RUN, "--in", str(loose), "--model", "global", "--kit", str(hospital.kit)]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "with own")])
    assert done.exit_code == 0, done.output
    assert "1 images (all images in" in done.output
    assert "1 of them drawn on their images" in done.output
    assert "inferring: 1" in done.output
    named = tmp_path / "with own" / "images.csv"
    assert named.stat().st_mode & 0o777 == 0o600
    assert named.read_text().splitlines() == ["result,image,series", "$print('case'),$print('case').nii.gz,"]
    shutil.rmtree(hospital.state / "own")
    infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "global", loose, tmp_path / "without"))
    mine, without = written(tmp_path / "with own"), written(tmp_path / "without")
    assert mine.keys() == without.keys()
    assert len(mine) == 1
    assert mine != without

    forged = KeptVersions(hospital.state / "models")
    forged.note(replace(forged.of(RUN)[0], version=5))
    with pytest.raises(Tampered, match="noted as version 5 of run run-1 is another one's record"):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "5", loose, tmp_path / "out"))
    (hospital.state / "models" / hashlib.sha256(RUN.encode()).hexdigest()[:32] / "0000000005.version").unlink()
    with pytest.raises(ConfigError, match="would lie among the images"):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "0", loose, loose / "out"))
    with pytest.raises(ConfigError, match="there already"):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "global", loose, tmp_path / "without"))
    with pytest.raises(ConfigError, match="does not hold version 7 of run run-1; it holds 0"):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "7", loose, tmp_path / "out"))
    (hospital.kit / "policy.toml").write_text(f'code = ["{"0" * 64}"]\n')
    with pytest.raises(ConfigError, match=hospital.digest.hex()):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "global", loose, tmp_path / "out"))
    (hospital.kit / "policy.toml").unlink()
    for path in (chunks := list((hospital.state / "cache").iterdir())):
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises((StateError, WireError)):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "global", loose, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for path in chunks:
        path.unlink(missing_ok=True)
    with pytest.raises(StateError, match="no longer whole at this site"):
        infer(hospital.kit / "worker.toml", InferenceRequest(RUN, "global", loose, tmp_path / "out"))
    CodeStore(hospital.state / "code").forget(hospital.digest)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def kept(version: int, score: float | None = None) -> KeptVersion:
    metrics = {} if score is None else {"dice": score, "other": 1 - score}
    return KeptVersion(run="r", version=version, record=bytes([version % 256]), metrics=metrics, key="dice")


def test_the_newest_versions_and_the_best_one_are_kept(tmp_path: Path) -> None:
    versions = KeptVersions(tmp_path / "models")
    for number in range(40):
        versions.note(kept(number, 0.9 if number == 3 else 0.1 + number / 1000))
    expected = [3, *range(40 - NEWEST, 40)]
    assert [each.version for each in versions.of("r")] == expected
    assert [each.version for each in versions.note(kept(39))] == expected
    again = KeptVersions(tmp_path / "models")
    assert again.of("r")[-1].metrics == kept(39, 0.139).metrics
    # Sealed again, for a registry with other members: what it came to is still known.
    versions.note(replace(kept(39), record=b"sealed again"))
    assert versions.of("r")[-1] == replace(kept(39, 0.139), record=b"sealed again")
    found = best(again.of("r"))
    assert found is not None
    assert found.version == 3
    assert again.runs() == ("r",)
    (tmp_path / "models" / "damaged").mkdir()
    (tmp_path / "models" / "damaged" / "1.version").write_bytes(b"x")
    assert again.runs() == ("r",)
    again.forget("r")
    assert again.runs() == ()


def test_the_best_of_equal_versions_is_the_newest() -> None:
    found = best([kept(1, 0.5), kept(2, 0.5), kept(3, 0.4), kept(4)])
    assert found is not None
    assert found.version == 2


def test_where_smaller_is_better_the_smallest_is_best() -> None:
    found = best([replace(kept(number, score), key="-dice") for number, score in ((1, 0.5), (2, 0.3), (3, 0.4))])
    assert found is not None
    assert found.version == 2


@pytest.mark.parametrize(
    ("versions", "wanted", "text"),
    [
        ([], "best", "holds no version"),
        ([kept(1)], "best", "no version of run r was evaluated here"),
        ([kept(1)], "newest", "neither best nor global nor a version; here are 1"),
        ([kept(1)], "-1", "neither best nor global"),
        ([kept(1)], "9" * 5000, "neither best nor global"),
        ([kept(1)], "2", "does not hold version 2 of run r; it holds 1"),
    ],
)
def test_a_version_that_is_not_here_is_told(versions: list[KeptVersion], wanted: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        chosen("r", versions, wanted)


def test_the_last_version_is_asked_for_once_and_again_after_a_failure() -> None:
    keeping, ended = LastVersions(random.Random(1)), RunRow(run="r", state=RunState.STOPPED, version=3, digest=b"3")
    going, empty = RunRow(run="s", version=1, digest=b"1"), RunRow(run="t", state=RunState.ABORTED)

    def asked(now: float) -> list[str]:
        decided = Decisions()
        keeping.tick([ended, going, empty], now, decided)
        return [effect.run for effect in decided.effects if isinstance(effect, KeepLast)]

    assert asked(0) == ["r"]
    assert asked(1) == []
    keeping.failed("r", 2)
    assert asked(2) == []
    assert 2 < keeping.at < 10
    assert asked(keeping.at) == ["r"]
    assert keeping.at == float("inf")


def test_after_a_failure_other_runs_that_end_are_asked_for_as_well() -> None:
    keeping = LastVersions(random.Random(1))

    def asked(now: float, *runs: str) -> list[str]:
        decided = Decisions()
        keeping.tick([RunRow(run=run, state=RunState.STOPPED, version=3, digest=b"3") for run in runs], now, decided)
        return [effect.run for effect in decided.effects if isinstance(effect, KeepLast)]

    assert asked(0, "r") == ["r"]
    keeping.failed("r", 1)
    assert asked(keeping.at, "r") == ["r"]  # and this time it succeeds
    assert asked(100, "r", "s") == ["s"]


@pytest.mark.parametrize(
    ("error", "again"), [(Missing("gone"), False), (Tampered("another"), False), (StoreError("not now"), True)]
)
def test_a_last_version_that_is_not_what_was_signed_is_not_fetched_for_ever(
    tmp_path: Path, error: Exception, again: bool
) -> None:
    def fails(*arguments: Any) -> Iterator[bytes]:
        raise error
        yield b""

    told: list[Any] = []
    model = SimpleNamespace(manifest=None, key=None)
    versions = KeptVersions(tmp_path / "models")
    versions.note(kept(1))
    training: Any = SimpleNamespace(
        _kept=versions, _reader=lambda: None, _log=structlog.get_logger(), _tell=told.append
    )
    training._model_of, training._spec_of, training._read = (lambda *given: model), (lambda *given: None), fails
    Training.keep_last(training, "r", b"newer", threading.Event())
    assert told == ([NotKept(run="r")] if again else [])


def test_a_score_that_is_no_number_is_not_the_best() -> None:
    found = best([kept(1, float("nan")), kept(2, 0.5), kept(3, float("inf"))])
    assert found is not None
    assert found.version == 2
    assert best([kept(1, float("nan"))]) is None


def test_a_version_in_another_runs_folder_is_not_taken_for_that_runs(tmp_path: Path) -> None:
    versions = KeptVersions(tmp_path / "models")
    versions.note(kept(1, 0.5))
    versions.note(replace(kept(2, 0.9), run="other"))
    mine, other = (versions._folder(run) for run in ("r", "other"))
    shutil.copy(other / "0000000002.version", mine)
    assert [each.version for each in KeptVersions(tmp_path / "models").of("r")] == [1]


@pytest.mark.parametrize("name", ["$__import__('os').mkdir('pwned')", "@device", "%train.json", "a'b", "{x}"])
def test_a_folders_name_is_never_taken_for_an_expression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle, data = bundles.spleen(tmp_path / "bundle"), bundles.volumes(tmp_path / name)
    network = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference(network)))
    assert BundleInference(bundle, images=data, output=tmp_path / "out" / name).count == 5
    assert bundle_trainer(bundle, dataset_dir=data).spec
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["a#b", "a@##b", "a%::b", "@device#x"])
def test_a_path_that_monai_would_change_is_refused(tmp_path: Path, name: str) -> None:
    bundle, data = bundles.spleen(tmp_path / "bundle"), bundles.volumes(tmp_path / name)
    network = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference(network)))
    with pytest.raises(ConfigError, match=r"takes a part of .* for a reference; use a path without"):
        BundleInference(bundle, images=data, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="takes a part of"):
        BundleInference(bundle, images=tmp_path, output=data)
    with pytest.raises(ConfigError, match="takes a part of"):
        bundle_trainer(bundle, dataset_dir=data)


@pytest.mark.parametrize("value", ["%nowhere", "%missing.json::x"])
def test_a_bundle_that_refers_to_what_is_not_there_is_told_in_a_sentence(tmp_path: Path, value: str) -> None:
    bundle, data = bundles.spleen(tmp_path / "bundle"), bundles.volumes(tmp_path / "data")
    network = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    (bundle / "configs" / "inference.json").write_text(json.dumps({**inference(network), "inferer": value}))
    with pytest.raises(ConfigError, match=r"the bundle's configuration (takes over by % is not|is made, is not) there"):
        BundleInference(bundle, images=data, output=tmp_path / "out")


def test_a_site_tries_a_runs_code_before_it_joins(hospital: Hospital, tmp_path: Path) -> None:
    toml = hospital.kit / "worker.toml"
    toml.write_text(toml.read_text() + '[[filters]]\nname = "clip"\nnorm = 0.5\n')
    command = ["site", "rehearse", "--kit", str(hospital.kit)]
    nothing = CliRunner().invoke(app, command)
    assert "names no trainer; say with --code" in str(nothing.exception)
    done = CliRunner().invoke(app, [*command, "--code", str(tmp_path / "run"), "--run", RUN])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("version ")]
    assert [line.split("  ")[0] for line in lines] == ["version 0", "version 1"]
    assert all("val_mean_dice" in line and "2 steps on 2 examples" in line for line in lines)
    assert all(line.endswith("L2 norm of the update 0.5") for line in lines)
