"""Forming updates: the right numbers, nothing that is broken, and what a site keeps stays with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator.pipeline.admission import inspect
from protocol import limits
from protocol.encodings import DENSE_F32
from protocol.errors import (
    Aborted,
    ConfigError,
    DataError,
    DiskFull,
    Diverged,
    NothingLearned,
    OutOfMemory,
    StateError,
    TrainingError,
)
from protocol.keys import Identity, Role
from protocol.messages import Fingerprint, Named
from tests.support.training import FEDERATION, RAW, SITE, Adding, control, form, model
from worker.api.filters import build
from worker.api.trainer import Control, TrainResult
from worker.api.weights import Weights
from worker.pipeline.contribute import BaseVersion, evaluate, excluded
from worker.storage.local_tensors import LocalTensors

CLIP = build([Named(name="clip", parameters={"norm": 1.0})])
NOISE = build(
    [Named(name="clip", parameters={"norm": 1.0}), Named(name="gaussian", parameters={"noise_multiplier": 2.0})]
)


def arrays() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(2)
    return {
        "body.weight": dice.normal(size=(7, 11)).astype(np.float32),
        "norm.mean": dice.normal(size=5).astype(np.float32),
        "norm.count": np.array(3, np.int64),
        "head.weight": dice.normal(size=(3, 3)).astype(np.float32),
    }


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros_like(array) for name, array in arrays().items()}


def test_an_update_says_what_was_done() -> None:
    spec, base = model(arrays())
    mark = Fingerprint(count=3, root=bytes(32))
    trainer = Adding(zeros(), result={"metrics": {"loss": 0.5}, "fingerprint": mark, "steps": 4})
    update = form(trainer, spec, base).update
    assert update.encoding == DENSE_F32
    assert (update.examples, update.steps, update.trainer) == (3, 4, "Adding")
    assert update.seconds > 0
    assert update.filters == RAW.named
    assert update.absent == ()
    assert update.fingerprint == mark
    assert update.metrics == {"loss": 0.5}


class Reporting(Adding):
    """Tells its loss as it goes, and returns no metrics."""

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Two words on the loss, and one on what is no number."""
        for loss in (0.5, 0.25):
            control.progress(0.5, loss=loss, grad=float("nan"))
        return super().train(base, control)


def test_what_a_training_reported_last_is_told_if_its_result_names_no_metrics() -> None:
    spec, base = model(arrays())
    with_evaluation = control()
    with_evaluation.progress(1.0, accuracy=0.5)
    assert form(Reporting(zeros()), spec, base, training=with_evaluation).update.metrics == {"loss": 0.25}
    assert form(Reporting(zeros(), result={"metrics": {"dice": 0.5}}), spec, base).update.metrics == {"dice": 0.5}


def test_the_delta_is_trained_minus_base() -> None:
    spec, base = model(arrays())
    trainer = Adding(zeros())
    formed = form(trainer, spec, base)
    assert len(formed.payload) == spec.update_length == formed.manifest.length
    for name in spec.names:
        np.testing.assert_array_equal(trainer.before[name], arrays()[name])
        np.testing.assert_array_equal(formed.delta[name], trainer.arrays[name] - arrays()[name])


def test_the_aggregator_admits_what_is_formed() -> None:
    spec, base = model(arrays())
    formed = form(Adding(zeros(), step=100.0), spec, base, filters=CLIP)
    assert 0.9999 < inspect(spec, iter([formed.payload])) <= 1.0


def test_a_header_of_several_records_comes_first_in_every_update() -> None:
    given = {f"{index:06d}".ljust(limits.TENSOR_NAME, "x"): np.ones(1, np.float32) for index in range(7000)}
    spec, base = model(given)
    assert len(spec.header) > 2 * limits.RECORD
    formed = form(Adding({name: np.zeros(1, np.float32) for name in given}), spec, base)
    assert formed.payload.startswith(spec.header)
    assert all(values.tolist() == [1.0] for values in formed.delta.values())


def test_the_base_is_read_once_for_the_trainer_and_once_for_each_pass() -> None:
    spec, base = model(arrays())
    opened = []

    def counted() -> Iterator[bytes]:
        opened.append(1)
        return base()

    for filters, passes in ((RAW, 1), (CLIP, 2)):
        opened.clear()
        form(Adding(zeros()), spec, counted, filters=filters)
        assert len(opened) == 1 + passes


def test_training_in_double_precision_keeps_small_changes() -> None:
    spec, base = model({"w": np.array([1000.0], np.float32)})
    formed = form(Adding({"w": np.zeros(1)}, step=1e-7), spec, base)
    assert formed.delta["w"][0] == pytest.approx(1e-7, rel=1e-4)


def test_training_in_half_precision_sends_what_changed_and_not_the_rounding() -> None:
    spec, base = model({"w": np.array([1.0001, 3.14159], np.float32)})
    with pytest.raises(NothingLearned):  # the rounding alone would be a change
        form(Adding({"w": np.zeros(2, np.float16)}, step=0.0), spec, base)
    formed = form(Adding({"w": np.zeros(2, np.float16)}, step=1.0), spec, base)
    assert formed.delta["w"].tolist() == [1, 1]


def test_arrays_of_any_layout_are_read_in_the_order_of_the_specification() -> None:
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    spec, base = model({"w": np.zeros((3, 4), np.float32)})

    class Turned:
        def train(self, base: Weights, control: Control) -> TrainResult:
            dict(base.tensors())
            return TrainResult(weights={"w": np.asfortranarray(given)}, examples=1, steps=1)

        def evaluate(self, model: Weights, control: Control) -> Any:
            raise NotImplementedError

    np.testing.assert_array_equal(form(Turned(), spec, base).delta["w"], given)


# ---- what is refused


def test_a_training_that_changed_nothing_sends_nothing_whatever_the_filters_add() -> None:
    spec, base = model(arrays())
    noisy = build(
        [Named(name="clip", parameters={"norm": 1.0}), Named(name="gaussian", parameters={"noise_multiplier": 1.0})]
    )
    for filters in (RAW, noisy):
        with pytest.raises(NothingLearned, match=r"Adding took 1 steps.*nothing was sent"):
            form(Adding(zeros(), step=0.0), spec, base, filters=filters)
    # What the site keeps to itself is no reason to send zeros.
    with pytest.raises(NothingLearned):
        form(Adding(zeros(), step=0.0), spec, base, exclude=["head.*"])


@pytest.mark.parametrize("result", [{"steps": 0}, {"examples": 0}])
def test_a_training_without_a_step_sends_nothing(result: dict[str, int]) -> None:
    spec, base = model(arrays())
    with pytest.raises(DataError, match="nothing to send"):
        form(Adding(zeros(), result=result), spec, base)


@dataclass
class Returning(Adding):
    """Returns something else than a trainer has to."""

    given: Any = None

    def train(self, base: Weights, control: Control) -> Any:
        super().train(base, control)
        return self.given

    def evaluate(self, model: Weights, control: Control) -> Any:
        return self.given


def test_a_trainer_that_returns_something_else_is_told_what_it_has_to_return() -> None:
    spec, base = model(arrays())
    for given in (None, {"weights": zeros()}, 3):
        told = type(given).__name__
        with pytest.raises(TrainingError, match=f"Returning.train returned a {told}; it has to return a fledge.Train"):
            form(Returning(zeros(), given=given), spec, base)
        with pytest.raises(TrainingError, match=f"evaluate returned a {told}; it has to return a fledge.Evaluation"):
            evaluate(Returning(zeros(), given=given), BaseVersion(spec, base), control=control())


def test_a_result_that_is_no_array_is_named() -> None:
    class Graded:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    spec, base = model({"w": np.zeros(2, np.float32)})
    given = TrainResult(weights={"w": Graded()}, examples=1, steps=1)
    with pytest.raises(TrainingError, match=r"tensor 'w' of the training's result cannot be read.*requires grad"):
        form(Returning({"w": np.zeros(2, np.float32)}, given=given), spec, base)


def test_a_trainer_that_never_reads_the_base_is_refused() -> None:
    class Own(Adding):
        def train(self, base: Weights, control: Control) -> TrainResult:
            return super().train(Weights(base.spec, recorded), control)

    spec, recorded = model(arrays())
    with pytest.raises(TrainingError, match="never read the version"):
        form(Own(zeros()), spec, recorded)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_never_sent(wrong: float) -> None:
    spec, base = model(arrays())
    with pytest.raises(Diverged, match=r"not finite.*nothing was sent"):
        form(Adding(zeros(), step=wrong), spec, base)


def test_a_delta_beyond_float32_is_never_sent() -> None:
    spec, base = model({"w": np.array([-3e38], np.float32)})
    with pytest.raises(TrainingError, match=r"'w'.*not finite"):
        form(Adding({"w": np.zeros(1)}, step=6e38), spec, base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"body.weight": np.zeros((7, 11), np.float32)}}, "no tensor 'head.weight'; 2 are missing"),
        ({"weights": {**zeros(), "head.weight": np.zeros(9, np.float32)}}, r"'head.weight' has the shape \[9\]"),
        ({"weights": {**zeros(), "head.weight": np.zeros((3, 3), np.int64)}}, "'head.weight' is int64"),
        ({"examples": 0}, "examples"),
        ({"steps": -1}, "steps"),
        ({"metrics": {"a b": 1.0}}, "'a b'"),
        ({"metrics": {f"m{i}": 1.0 for i in range(300)}}, "300 metrics"),
    ],
)
def test_results_that_break_the_promise_are_refused(change: dict[str, Any], message: str) -> None:
    spec, base = model(arrays())
    with pytest.raises(TrainingError, match=message):
        form(Adding(zeros(), result=change), spec, base)


def test_metrics_that_are_not_finite_are_left_out_and_logged() -> None:
    spec, base = model(arrays())
    with capture_logs() as logs:
        formed = form(Adding(zeros(), result={"metrics": {"auc": float("nan"), "loss": 1}}), spec, base)
    assert formed.update.metrics == {"loss": 1.0}
    assert [entry["metric"] for entry in logs if entry["event"] == "metric.left_out"] == ["auc"]


def test_whatever_a_trainer_raises_becomes_a_training_error() -> None:
    class Broken:
        def train(self, base: Weights, control: Control) -> TrainResult:
            raise KeyError("patients")

        def evaluate(self, model: Weights, control: Control) -> Any:
            raise ZeroDivisionError

    spec, base = model(arrays())
    with pytest.raises(TrainingError, match=r"Broken.train failed: KeyError: 'patients'"):
        form(Broken(), spec, base)
    with pytest.raises(TrainingError, match=r"Broken.evaluate failed: ZeroDivisionError"):
        evaluate(Broken(), BaseVersion(spec, base), control=control())


class OutOfMemoryError(RuntimeError):
    """As torch calls it, which is no `MemoryError`."""


@pytest.mark.parametrize("error", [MemoryError("4 GiB"), OutOfMemoryError("CUDA")])
def test_memory_that_does_not_suffice_is_told_apart(error: Exception) -> None:
    class Full(Adding):
        def train(self, base: Weights, control: Control) -> TrainResult:
            raise error

    with pytest.raises(OutOfMemory, match=r"Full.train failed: (Out\w+|Memory)Error"):
        form(Full(zeros()), *model(arrays()))


def test_a_full_disk_ends_the_forming_and_leaves_nothing_running() -> None:
    spec, base = model({"w": np.zeros(12 * limits.RECORD // 4, np.float32)})
    closed = []

    def watched() -> Iterator[bytes]:
        try:
            yield from base()
        finally:
            closed.append(True)

    def full(name: bytes, chunk: bytes) -> None:
        raise DiskFull("no room for a chunk")

    with pytest.raises(DiskFull, match="no room"):
        form(Adding({"w": np.zeros(12 * limits.RECORD // 4, np.float32)}), spec, watched, filters=CLIP, emit=full)
    assert len(closed) == 3
    assert not [each for each in threading.enumerate() if each.name.startswith("worker update")]


def test_an_order_to_stop_is_obeyed_while_the_update_is_formed() -> None:
    spec, base = model(arrays())
    abort = threading.Event()

    class Stopping(Adding):
        def train(self, base: Weights, control: Control) -> TrainResult:
            result = super().train(base, control)
            abort.set()
            return result

    with pytest.raises(Aborted, match="version 1"):
        form(Stopping(zeros()), spec, base, training=control(abort=abort))


# ---- what stays at the site


def test_excluded_tensors_are_zeros_and_named() -> None:
    spec, base = model(arrays())
    formed = form(Adding(zeros()), spec, base, exclude=["head.*"], filters=NOISE)
    assert formed.update.absent == ("head.weight",)
    assert not formed.delta["head.weight"].any()
    assert formed.delta["body.weight"].all()


def test_excluded_tensors_do_not_count_towards_the_norm() -> None:
    spec, base = model({"a": np.zeros(1, np.float32), "b": np.zeros(10**4, np.float32)})
    formed = form(
        Adding({"a": np.zeros(1, np.float32), "b": np.zeros(10**4, np.float32)}),
        spec,
        base,
        exclude=["b"],
        filters=CLIP,
    )
    assert formed.delta["a"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("patterns", "message"), [(["hed.*"], "'hed.*' matches no tensor"), (["*"], "nothing to share")]
)
def test_patterns_that_cannot_be_meant_are_refused(patterns: list[str], message: str) -> None:
    spec, _ = model(arrays())
    with pytest.raises(ConfigError, match=message):
        excluded(spec, patterns)


def own(directory: Path, identity: Identity = SITE) -> LocalTensors:
    return LocalTensors(directory / "own", identity, FEDERATION)


def test_own_values_outlive_the_process_and_are_trained_on(tmp_path: Path) -> None:
    spec, base = model(arrays())
    start = arrays()["head.weight"]
    for round in (1, 2, 3):
        trainer = Adding(zeros())  # as after a restart
        formed = form(trainer, spec, base, exclude=["head.*"], own=own(tmp_path))
        np.testing.assert_allclose(trainer.arrays["head.weight"], start + round, rtol=1e-6)
        np.testing.assert_array_equal(trainer.before["body.weight"], arrays()["body.weight"])
        assert int(trainer.arrays["norm.count"]) == 3 + round
        assert not formed.delta["head.weight"].any()


def test_every_run_has_own_values_of_its_own(tmp_path: Path) -> None:
    spec, base = model(arrays())
    form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path))
    other = Adding(zeros())
    form(other, spec, base, exclude=["head.*"], own=own(tmp_path), training=control(run="other"))
    np.testing.assert_array_equal(other.before["head.weight"], arrays()["head.weight"])


def test_evaluation_uses_the_sites_own_values(tmp_path: Path) -> None:
    spec, base = model({"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
    targets = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
    form(Adding(targets, step=10.0), spec, base, exclude=["b"], own=own(tmp_path))
    found = evaluate(Adding(targets), BaseVersion(spec, base), control=control(), exclude=["b"], own=own(tmp_path))
    assert found.examples == 2
    assert found.metrics == {"sum": 12.0}


def test_a_tensor_that_is_shared_again_comes_from_the_version(tmp_path: Path) -> None:
    spec, base = model(arrays())
    form(Adding(zeros()), spec, base, exclude=["head.*", "body.*"], own=own(tmp_path))
    trainer = Adding(zeros())
    form(trainer, spec, base, exclude=["head.*"], own=own(tmp_path))
    np.testing.assert_array_equal(trainer.before["body.weight"], arrays()["body.weight"])
    np.testing.assert_array_equal(trainer.before["head.weight"], arrays()["head.weight"] + 1)


def test_own_values_lie_encrypted_and_private_on_the_disk(tmp_path: Path) -> None:
    mark = np.frombuffer(b"the heads of the patients are 4x", np.float32)
    spec, base = model({"head": mark, "body": np.zeros(1, np.float32)})
    trainer = Adding({"head": np.zeros(8, np.float32), "body": np.zeros(1, np.float32)}, step=1e-30)
    form(trainer, spec, base, exclude=["head"], own=own(tmp_path))
    (path,) = (tmp_path / "own").iterdir()
    assert b"patients" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "length"])
def test_damaged_own_values_are_refused_and_the_way_out_named(tmp_path: Path, damage: str) -> None:
    spec, base = model(arrays())
    form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path))
    (path,) = (tmp_path / "own").iterdir()
    raw = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": raw[:-9],
            "flip": raw[:20] + bytes([raw[20] ^ 1]) + raw[21:],
            "length": raw[:-4] + b"\xff\xff\xff\xff",
        }[damage]
    )
    with pytest.raises(StateError, match=r"own tensors.*delete the file"):
        form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path))


def test_own_values_of_another_key_are_refused(tmp_path: Path) -> None:
    spec, base = model(arrays())
    form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path))
    stranger = Identity.generate("north", Role.SITE)
    with pytest.raises(StateError, match="another key"):
        form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path, stranger))


def test_a_training_that_fails_leaves_the_own_values_as_they_were(tmp_path: Path) -> None:
    spec, base = model(arrays())
    form(Adding(zeros()), spec, base, exclude=["head.*"], own=own(tmp_path))
    (path,) = (tmp_path / "own").iterdir()
    before = path.read_bytes()
    with pytest.raises(TrainingError):
        form(Adding(zeros(), step=np.nan), spec, base, exclude=["head.*"], own=own(tmp_path))
    broken = {**zeros(), "head.weight": np.full((3, 3), np.nan, np.float32)}
    with pytest.raises(TrainingError, match=r"'head.weight'.*not finite"):
        form(Adding(zeros(), result={"weights": broken}), spec, base, exclude=["head.*"], own=own(tmp_path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_a_trainer_keeps_stays_at_the_site_together_with_what_is_excluded() -> None:
    spec, records = model({name: np.zeros(2, np.float32) for name in ("a", "b", "c")})

    def keeping(*names: str) -> Adding:
        trainer = Adding({name: np.zeros(2, np.float32) for name in ("a", "b", "c")})
        trainer.keeps = frozenset(names)
        return trainer

    formed = form(keeping("b"), spec, records, exclude=["a"])
    assert formed.update.absent == ("a", "b")
    assert [formed.delta[name].any() for name in ("a", "b", "c")] == [False, False, True]
    with pytest.raises(TrainingError, match="keeps 'd' to itself"):
        form(keeping("d"), spec, records)
    with pytest.raises(ConfigError, match="leave nothing to share"):
        form(keeping("b", "c"), spec, records, exclude=["a"])
