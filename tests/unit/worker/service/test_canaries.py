"""Nothing private leaves: names planted wherever a trainer could let them slip are found in nothing that is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.blobs.directory import FileBlobs
from protocol.envelope import Verified, raw_body, unlock
from protocol.messages import Kind
from tests.support.fake_aggregator import AddOne, Centre
from worker.api.trainer import Control, EvaluationResult, TrainResult
from worker.api.weights import Weights
from worker.storage.incidents import Incidents

CANARIES = ("Mueller", "patient-4711", "1955-03-17", "0010,0010", "0010.0010", "archive", "trainer_of_the_ward")
"""A patient's name, number and birthday, a DICOM tag as it is written and as a metric, a folder, a line of code."""
FOLDER = "archive/Mueller_Hans_patient-4711_1955-03-17"


class Careless(AddOne):
    """A trainer that lets a patient's name slip in the way it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.slip: Callable[[Control], TrainResult | None] = lambda control: None
        self.found = {"dice": 0.9}

    def train(self, base: Weights, control: Control) -> TrainResult:
        trainer_of_the_ward = self.slip(control)
        return trainer_of_the_ward or super().train(base, control)

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        return EvaluationResult(examples=5, metrics=self.found)


def by_path(control: Control) -> None:
    Path(FOLDER, "scan.nii.gz").read_bytes()


def by_message(control: Control) -> None:
    raise ValueError("(0010,0010) PatientName Mueller^Hans, born 1955-03-17, has no label")


def by_cause(control: Control) -> None:
    try:
        raise KeyError("patient-4711")
    except KeyError as error:
        raise RuntimeError("the data could not be read") from error


def by_leaving(control: Control) -> None:
    raise SystemExit(f"{FOLDER} is missing")


def by_progress(control: Control) -> None:
    control.progress(0.5, **{"Mueller_Hans.nii.gz": 0.1})


def by_metric(control: Control) -> TrainResult:
    return reported("patient-4711.dcm")


def by_path_as_metric(control: Control) -> TrainResult:
    return reported(f"{FOLDER}/loss")


def reported(metric: str) -> TrainResult:
    return TrainResult(weights={"w": np.ones(8, np.float32)}, examples=1, steps=1, metrics={metric: 0.1})


SLIPS = [by_path, by_message, by_cause, by_leaving, by_progress, by_metric, by_path_as_metric]


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    made = Centre("canaries", store=FileBlobs(tmp_path / "store"))
    yield made
    made.close()


def life(centre: Centre, state: Path, trainer: Careless, until: Callable[[Verified], bool]) -> list[Verified]:
    """One life of a worker, until the centre got what it waited for; everything that was sent."""
    got: list[Verified] = []
    worker = centre.worker(state, trainer)
    worker.start()
    try:
        ends = time.monotonic() + 10
        while not got or not until(got[-1]):
            got.append(centre.events.get(timeout=ends - time.monotonic()))
    finally:
        worker.stop()
        worker.join(10)
        worker._transport.close()
    return got


def test_names_of_patients_stay_at_the_site(centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.rules.reporting.REPORT_AT_MOST_EVERY", 0.01)
    state, trainer = tmp_path / "state", Careless()
    sent: list[Verified] = []
    told: list[tuple[str, str]] = []

    def failed(message: Verified) -> bool:
        if message.core.kind != Kind.EVENT or centre.body(message).state != "blocked":
            return False
        told.append((centre.body(message).code, centre.body(message).case))
        return True

    with capture_logs() as logs:
        centre.head(centre.version(0, evaluate=True), 0)
        trainer.found = {"0010.0010": 0.5}
        sent += life(centre, state, trainer, failed)
        trainer.found = {"dice": 0.9}
        for slip in SLIPS:
            trainer.slip = slip
            sent += life(centre, state, trainer, failed)
        trainer.slip = lambda control: None
        sent += life(centre, state, trainer, lambda message: centre.body(message).state == "idle")
        sent += [centre.next_message(), centre.next_message(), centre.requests.get(timeout=10)]
        for waiting in (centre.events, centre.requests):
            while not waiting.empty():
                sent.append(waiting.get())
        assert centre.inbound.empty()

    assert {message.core.kind for message in sent} == {Kind.EVENT, Kind.EVALUATION, Kind.UPDATE, Kind.REQUEST}
    assert [code for code, _ in told] == ["trainer"] * (len(SLIPS) + 1)
    cases = Incidents(state / "cases")
    assert {case.number for case in cases.all()} == {case for _, case in told}
    kept = "".join(cases.text(case) for _, case in told)
    everything = [message.raw for message in sent]
    everything += [raw_body(message, unlock(message, centre.identity)) for message in sent]
    everything += [centre.delta(message).tobytes() for message in sent if message.core.kind == Kind.UPDATE]
    for path in (tmp_path / "store").rglob("*"):
        everything += [str(path.relative_to(tmp_path)).encode(), path.read_bytes() if path.is_file() else b""]
    everything.append(repr(logs).encode())  # operators may ask for its lines
    for canary in CANARIES:
        assert canary in kept
        assert not [part for part in everything if canary.encode() in part]
