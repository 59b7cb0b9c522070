from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.runtime import database
from protocol.errors import ConfigError, StateError
from protocol.keys import Identity, Role
from protocol.messages import Kind, Outcome, RunState
from tests.support.fake_aggregator import RUN, AddOne, Centre
from tests.support.running_worker import Seen, opened, start, stop
from worker.domain.state import RunRow
from worker.journal.approvals import Approvals
from worker.journal.journal import Journal
from worker.policy import SitePolicy
from worker.service import assembly
from worker.service.service import WorkerService
from worker.storage.incidents import Incidents


def files(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "spool").iterdir())


def test_an_announced_version_becomes_an_update_and_its_receipt_empties_the_spool(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    worker = start(centre, tmp_path, trainer, workers, on_event=seen)
    centre.announce(centre.version(0, value=3.0))
    update = centre.next_message()
    assert (update.core.kind, update.core.version, update.core.epoch, update.core.sequence) == (Kind.UPDATE, 0, 0, 1)
    assert np.array_equal(centre.delta(update), np.ones(8))
    assert centre.body(update).examples == 10
    assert len(files(tmp_path)) == 1
    seen.wait("idle", 0)
    centre.receipt(update, Outcome.MERGED, version=1)
    centre.announce(centre.version(1, value=4.0))
    second = centre.next_message()
    assert (second.core.version, second.core.sequence) == (1, 2)
    stop(worker)
    journal = opened(centre, tmp_path, trainer, workers).journal
    (kept,) = journal.receipts()
    assert (kept["id"], kept["outcome"], kept["version"]) == (update.core.id, "merged", 1)
    assert len(files(tmp_path)) == 1


def test_a_worker_that_starts_late_finds_the_version_by_the_head(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    centre.head(centre.version(7), 7)
    start(centre, tmp_path, trainer, workers)
    assert centre.next_message().core.version == 7


def test_a_version_is_evaluated_before_it_is_trained_from(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0, evaluate=True, quota=2))
    first, second, third = centre.next_message(), centre.next_message(), centre.next_message()
    assert [message.kind for message in (first, second, third)] == [Kind.EVALUATION, Kind.UPDATE, Kind.UPDATE]
    assert [message.core.sequence for message in (first, second, third)] == [1, 2, 3]
    assert centre.body(first).metrics == {"accuracy": 0.9}
    assert trainer.evaluated == [0]
    assert len(set(trainer.seeds)) == 2


def test_the_last_version_is_measured_when_the_run_has_ended(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0, evaluate=True))
    centre.next_message(), centre.next_message()
    last = centre.version(1, value=1.0, evaluate=True)
    centre.announce(centre.head(last, 1, RunState.STOPPED))  # which it fetches: nobody announced it
    message = centre.next_message()
    assert (message.kind, message.core.version) == (Kind.EVALUATION, 1)
    assert centre.body(message).metrics == {"accuracy": 0.9}
    assert (trainer.evaluated, len(trainer.seeds)) == ([0, 1], 1)


def test_a_site_that_took_no_part_does_not_measure_the_last_version(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    worker = start(centre, tmp_path, trainer, workers, on_event=seen)
    version = centre.version(0, evaluate=True)
    centre.announce(centre.head(version, 0, RunState.STOPPED))
    centre.announce(version)
    seen.wait("evaluating", 0)
    seen.wait("idle", 0)
    stop(worker)
    assert trainer.evaluated == []


def test_a_site_whose_data_number_their_classes_otherwise_is_refused_before_it_trains(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "normal"}, "training": [{"image": "a.png", "label": 0}]}')
    seen = Seen()
    start(centre, tmp_path, trainer, workers, on_event=seen, options=lambda run: {"dataset_dir": str(tmp_path)})
    centre.announce(centre.version(0, evaluate=True, task={"classes": ("covid", "normal")}))
    seen.wait("blocked", 0)
    assert (seen.events[-1].code, trainer.seeds, trainer.evaluated) == ("data", [], [])
    assert "calls class 0 normal, and in the run it is covid" in Incidents(tmp_path / "cases").text(
        seen.events[-1].case
    )


def test_what_was_not_settled_is_sent_again_with_the_same_bytes_after_a_restart(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    worker = start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0))
    update = centre.next_message()
    stop(worker)
    start(centre, tmp_path, trainer, workers)
    assert centre.next_message().raw == update.raw
    assert len(trainer.seeds) == 1


def test_a_wanted_reupload_puts_missing_chunks_and_sends_the_same_bytes(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0))
    update = centre.next_message()
    for info in list(centre.store.list("up/")):
        centre.store.delete(info.key)
    centre.receipt(update, Outcome.REUPLOAD)
    assert centre.next_message().raw == update.raw
    assert np.array_equal(centre.delta(update), np.ones(8))


def test_a_reused_sequence_is_sealed_again_under_a_higher_key_epoch(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0))
    update = centre.next_message()
    centre.receipt(update, Outcome.SEQUENCE_REUSED, highest=4)
    again = centre.next_message()
    assert (again.core.id, again.core.epoch, again.core.sequence) == (update.core.id, 5, 1)
    assert again.core.spec == update.core.spec
    assert centre.body(again) == centre.body(update)
    assert np.array_equal(centre.delta(again), np.ones(8))
    centre.receipt(again, Outcome.MERGED)
    centre.announce(centre.version(1))
    assert (centre.next_message().core.epoch, len(trainer.seeds)) == (5, 2)


def test_the_end_of_a_run_stops_the_training(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    trainer.gate.clear()
    seen = Seen()
    start(centre, tmp_path, trainer, workers, on_event=seen)
    record = centre.version(0)
    centre.announce(record)
    assert trainer.started.wait(10)
    centre.announce(centre.head(record, 0, RunState.ABORTED))
    seen.wait("idle")
    assert files(tmp_path) == []
    assert centre.inbound.empty()


def test_a_failing_trainer_leaves_nothing_behind_and_is_tried_again(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    trainer.fails.append(ValueError("the scanner is on fire"))
    with capture_logs() as logs:
        start(centre, tmp_path, trainer, workers)
        centre.announce(centre.version(0))
        update = centre.next_message()
    assert update.core.sequence == 2
    assert len(files(tmp_path)) == 1
    failed = next(log for log in logs if log["event"] == "training.failed")
    assert failed["code"] == "trainer"
    assert "the scanner is on fire" in Incidents(tmp_path / "cases").text(failed["case"])
    assert "the scanner is on fire" not in str(logs)


def test_a_run_waits_until_somebody_at_the_site_says_yes_and_a_no_stops_it(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    asks = SitePolicy(ask_first=True, hours="00:00-00:00", bandwidth_kbit=8000)
    start(centre, tmp_path, trainer, workers, on_event=seen, policy=asks, heartbeat=0.2)
    centre.announce(centre.version(0))
    seen.wait("waiting", 0)
    assert not trainer.started.is_set()
    trainer.gate.clear()
    answers = Approvals(tmp_path / "approvals")
    answers.say(RUN, True)
    assert trainer.started.wait(10)
    answers.say(RUN, False)
    seen.wait("idle", 0)
    stop(workers.pop())
    found = Journal.beside(tmp_path / "worker.db")
    assert (found.answers, found.updates) == ({RUN: False}, ())
    assert list((tmp_path / "approvals").iterdir()) == []
    assert centre.inbound.empty()


def test_a_full_spool_blocks_the_worker_but_does_not_end_it(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    worker = start(centre, tmp_path, trainer, workers, on_event=seen, spool_quota=100)
    centre.announce(centre.version(0))
    seen.wait("blocked", 0)
    assert not worker.ended.is_set()
    assert trainer.seeds == []


def test_messages_that_nobody_here_should_believe_are_refused_and_forgotten(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    forger = Centre(centre.name)
    forged = forger.version(5)
    forger.close()
    genuine = centre.version(0)
    with capture_logs() as logs:
        start(centre, tmp_path, trainer, workers)
        for raw in (b"noise", genuine[:-1] + bytes([genuine[-1] ^ 1]), forged, genuine):
            centre.announce(raw)
        assert centre.next_message().core.version == 0
    reasons = [log["reason"] for log in logs if log["event"] == "message.refused"]
    assert reasons == ["bad_frame", "bad_signature", "untrusted"]
    assert centre.transport.depth("down.alpha") == 0


def test_a_newer_registry_is_taken_over_from_the_head(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    from protocol.registry import sign_registry

    centre.head(centre.version(0), 0)
    worker = start(centre, tmp_path, trainer, workers)
    centre.next_message()
    centre.registry = centre.registry.with_entry(Identity.generate("beta", Role.SITE).public)
    centre.registry_record = sign_registry(centre.registry, centre.root, "test", b"i" * 16)
    centre._put_record(centre.registry_record)
    record = centre.version(1)
    with capture_logs() as logs:
        centre.announce(centre.head(record, 1))
        assert centre.next_message().core.version == 1
        stop(worker)
    assert [log["version"] for log in logs if log["event"] == "registry.changed"] == [centre.registry.version]
    assert opened(centre, tmp_path, trainer, workers)._reader().registry == centre.registry


def test_signs_of_life_reach_the_aggregator(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    trainer.gate.clear()
    start(centre, tmp_path, trainer, workers, heartbeat=0.2)
    centre.announce(centre.version(0))
    assert trainer.started.wait(10)
    while True:
        event = centre.body(centre.events.get(timeout=10))
        if event.state == "training" and event.progress == 0.5:
            break
    assert event.metrics == {"loss": 1.0}


def test_stopping_aborts_the_training_at_once(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    trainer.gate.clear()
    worker = start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0))
    assert trainer.started.wait(10)
    stop(worker)
    assert worker.ended.is_set()
    journal = opened(centre, tmp_path, trainer, workers).journal
    snapshot = journal.load()
    assert isinstance(snapshot.runs[0], RunRow)
    assert (snapshot.runs[0].version, snapshot.runs[0].sent, snapshot.updates) == (0, 0, ())


def test_a_full_disk_under_the_journal_holds_the_worker_up_and_loses_nothing(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.service._AGAIN", 0.02)
    seen = Seen()
    trainer.gate.clear()
    trainer.metrics = {f"metric-{index}": float(index) for index in range(250)}  # a message of several pages
    worker = start(centre, tmp_path, trainer, workers, on_event=seen)
    centre.announce(centre.version(0))
    assert trainer.started.wait(10)
    seen.wait("training", 0)
    pages(worker, 1)
    trainer.gate.set()
    seen.wait("blocked", 0)
    pages(worker, 2**31 - 2)
    assert centre.next_message().core.version == 0
    assert len(trainer.seeds) == 1


def test_a_program_that_locks_the_journal_holds_the_worker_up_and_loses_nothing(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.service._AGAIN", 0.02)
    monkeypatch.setattr(database, "_PRAGMAS", (*database._PRAGMAS, "busy_timeout=1"))  # instead of ten seconds
    seen = Seen()
    trainer.gate.clear()
    start(centre, tmp_path, trainer, workers, on_event=seen)
    centre.announce(centre.version(0))
    assert trainer.started.wait(10)
    seen.wait("training", 0)
    [path] = tmp_path.rglob("worker.db")
    with closing(sqlite3.connect(path)) as backup:
        backup.execute("BEGIN EXCLUSIVE")
        trainer.gate.set()
        seen.wait("blocked", 0)
    assert centre.next_message().core.version == 0
    assert len(trainer.seeds) == 1


def pages(worker: WorkerService, count: int) -> None:
    """Give the journal's disk room for this many pages."""
    with worker.journal._engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {count}")


def test_two_workers_cannot_share_a_state_directory(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    with pytest.raises(StateError, match="another worker"):
        centre.worker(tmp_path, trainer)


def test_nothing_is_left_open_of_a_worker_that_cannot_be_put_together(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise StateError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(assembly, "CommandHandler", fail)
        with pytest.raises(StateError, match="no room"):
            centre.worker(tmp_path, trainer)
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.lexists(link) and os.readlink(link).startswith(str(tmp_path))]
    start(centre, tmp_path, trainer, workers)


def test_only_a_sites_keys_make_a_worker(centre: Centre, trainer: AddOne, tmp_path: Path) -> None:
    centre.site = centre.identity
    with pytest.raises(ConfigError, match="aggregator"):
        centre.worker(tmp_path, trainer)


def test_neither_weights_nor_keys_lie_on_the_disk(
    centre: Centre, trainer: AddOne, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(centre, tmp_path, trainer, workers)
    centre.announce(centre.version(0, value=1234.5))
    centre.next_message()
    stop(workers.pop())
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for plain in (np.float32(1234.5).tobytes() * 2, np.float32(1).tobytes() * 4, centre.spec.header):
        assert plain not in kept
    for secret in (bytes(centre.site.sign), bytes(centre.site.box)):
        assert secret not in kept
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))
