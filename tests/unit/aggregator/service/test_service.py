"""The aggregator's shell with a transport and a store in memory: what a site sends, what comes back, what is kept."""

from __future__ import annotations

import importlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator.audit.export import write_file
from aggregator.audit.replay import WhatIf, audit, read_version
from aggregator.audit.retention import References, collect_garbage
from aggregator.config import DEFAULT_VERSIONS, RunConfig
from aggregator.journal.history import History
from aggregator.pipeline.records import Records
from aggregator.service import assembly
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import AggregatorService
from aggregator.service.settings import FirstRun
from aggregator.strategy.strategies import strategy
from broker.blobs.memory import MemoryBlobs
from broker.runtime import database
from broker.runtime.health import HEALTH, last_holder
from broker.transport.memory import MemoryTransport
from protocol import limits, topology
from protocol.envelope import seal, unlock, verify
from protocol.errors import ConfigError, Fenced, LoginRefused, NotAllowed, StateError
from protocol.keys import Identity, Role
from protocol.messages import Evaluation, Head, Kind, Outcome, RunState
from protocol.registry import sign_registry
from tests.support.bodies import typed_body
from tests.support.chunks import cut
from tests.support.federation import FEDERATION, RUN, SMALL, Federation, Site, payload, tensors
from tests.support.packages import install
from tests.support.running_aggregator import ONE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as bench:
        yield bench


def model(bench: Bench, version: int, *, released: bool = False) -> dict[str, Any]:
    history = History.open(bench.state / "aggregator.db")
    with ThreadPoolExecutor(2) as pool:
        records = Records(FEDERATION, RUN, bench.federation.aggregator, bench.store, pool)
        data = read_version(
            records,
            bench.federation.registry,
            history.run(RUN).version_record(version),
            history.run(RUN).state_records(version),
            released=released,
        )
        return tensors(SMALL, b"".join(data))


def test_two_updates_make_a_version_and_their_sites_get_receipts(bench: Bench) -> None:
    bench.start()
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE))
    for site in ("site-0", "site-1"):
        bench.wait_outcome(site, Outcome.MERGED)
    bench.stop()
    np.testing.assert_allclose(model(bench, 1)["weight"], np.ones((5, 3)))
    np.testing.assert_allclose(model(bench, 1, released=True)["weight"], np.ones((5, 3)))
    assert bench.head().runs[0].version == 1
    assert audit(bench.replay().history, RUN) == []


def test_a_program_that_locks_the_database_holds_the_aggregator_up_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.service.service._COMMIT_AGAIN", 0.02)
    monkeypatch.setattr(database, "_PRAGMAS", (*database._PRAGMAS, "busy_timeout=1"))  # instead of ten seconds
    service = bench.start()
    with capture_logs() as lines, closing(sqlite3.connect(bench.state / "aggregator.db")) as backup:
        backup.execute("BEGIN IMMEDIATE")
        for site in ("site-0", "site-1"):
            bench.send(site, bench.sites[site].update(ONE))
        while not any(line["event"] == "database.busy" for line in lines):
            assert not service.ended.wait(0.01)
    for site in ("site-0", "site-1"):
        bench.wait_outcome(site, Outcome.MERGED)


def test_the_same_update_again_is_answered_with_the_same_receipt_and_merged_once(bench: Bench) -> None:
    service = bench.start()
    raw = bench.send("site-0", bench.sites["site-0"].update(ONE))
    bench.send("site-0", raw)
    bench.send("site-1", bench.sites["site-1"].update(ONE))
    bench.wait_outcome("site-0", Outcome.MERGED)
    bench.send("site-0", raw)
    bench.wait_outcome("site-0", Outcome.MERGED, count=2)
    assert service.rules.runs[RUN].version == 1


def test_other_bytes_under_a_used_sequence_are_answered_with_sequence_reused(bench: Bench) -> None:
    bench.start()
    site = bench.sites["site-0"]
    bench.send("site-0", site.update(ONE))
    site.sequence = 0
    bench.send("site-0", site.update(ONE))
    bench.wait_outcome("site-0", Outcome.SEQUENCE_REUSED, "sequence_reused")


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("wrong_run", lambda site: site.update(ONE, run="another")),
        ("future_base", lambda site: site.update(ONE, base=7)),
        ("unknown_tensor", lambda site: site.update(ONE, absent=("no such",))),
        ("not_finite", lambda site: site.update({**ONE, "bias": np.array([1, np.nan, 1])})),
        ("not_finite", lambda site: site.update({**ONE, "bias": np.array([1, np.inf, 1])})),
        ("too_large_norm", lambda site: site.update({**ONE, "bias": np.full(3, 3e38)})),
        ("wrong_length", lambda site: site.update(payload(SMALL, ONE, update=True) + bytes(4))),
        ("wrong_header", lambda site: site.update(b"?" + payload(SMALL, ONE, update=True)[1:])),
    ],
)
def test_a_bad_update_gets_a_receipt_that_names_the_reason(
    reason: str, make: Callable[[Site], bytes], bench: Bench
) -> None:
    service = bench.start()
    bench.send("site-0", make(bench.sites["site-0"]))
    bench.wait_outcome("site-0", Outcome.REJECTED, reason)
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE))
    bench.wait_outcome("site-0", Outcome.MERGED)
    assert service.rules.runs[RUN].version == 1


def test_a_missing_chunk_is_asked_for_and_its_update_merged_once_it_is_there(bench: Bench) -> None:
    bench.start()
    kept: list[tuple[bytes, bytes]] = []
    raw = bench.sites["site-0"].update(ONE, emit=lambda name, chunk: kept.append((name, chunk)))
    bench.send("site-0", raw)
    bench.wait_outcome("site-0", Outcome.REUPLOAD, "chunk_missing")
    for name, chunk in kept:
        bench.store.put(topology.update_chunk("site-0", name.hex()), chunk)
    bench.send("site-0", raw)
    bench.send("site-1", bench.sites["site-1"].update(ONE))
    bench.wait_outcome("site-0", Outcome.MERGED)


def test_what_no_member_has_signed_becomes_a_dead_letter(bench: Bench) -> None:
    bench.start()
    stranger = Identity.generate("site-0", Role.SITE)
    site = bench.sites["site-0"]
    bench.send("site-0", b"not an envelope")
    bench.send("site-0", site.update(ONE, signer=stranger))
    bench.send("site-1", site.update(ONE))
    bench.wait(lambda: len(bench.dead()) == 3)
    assert sorted(bench.dead()) == ["bad_frame", "untrusted", "wrong_site"]


def test_commands_pause_resume_and_abort_a_run(bench: Bench) -> None:
    service = bench.start()
    bench.command("run.pause", 1)
    bench.wait(lambda: any(h.runs[0].state == RunState.PAUSED for h in _heads(bench)))
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE))
    bench.command("run.resume", 2)
    bench.wait_outcome("site-0", Outcome.MERGED)
    bench.send("site-2", bench.sites["site-2"].update(ONE))
    bench.command("run.abort", 3)
    bench.wait_outcome("site-2", Outcome.RUN_ABORTED, "abort-by-operator")
    assert service.ended.wait(10)
    bench.send("site-2", bench.sites["site-2"].update(ONE))
    bench.wait_outcome("site-2", Outcome.RUN_ABORTED, "abort-by-operator", count=2)


def test_a_command_counts_once_and_only_from_an_operator(bench: Bench) -> None:
    service = bench.start()
    bench.command("run.pause", 5)
    bench.command("run.resume", 5)
    bench.command("run.resume", 6, by=bench.federation.members["site-0"])
    bench.wait(lambda: len(bench.dead()) == 1)
    assert bench.dead() == ["wrong_role"]
    assert service.rules.runs[RUN].state == RunState.PAUSED


def _heads(bench: Bench) -> list[Head]:
    result = []
    for raw in bench.inbox[topology.down_queue("site-0")]:
        verified = verify(raw, bench.federation.registry, federation=FEDERATION, kinds={Kind.HEAD, Kind.VERSION})
        if verified.kind == Kind.HEAD:
            result.append(typed_body(verified))
    return result


def test_a_run_stops_at_its_target_and_says_why(bench: Bench) -> None:
    service = bench.start(stop={"metric": "accuracy", "target_metric": 0.9})
    for name, site in bench.federation.members.items():
        raw = seal(
            site,
            Kind.EVALUATION,
            Evaluation(examples=10, metrics={"accuracy": 0.95}),
            [bench.federation.aggregator.public],
            federation=FEDERATION,
            message_id=name.encode().ljust(16),
            run=RUN,
            version=0,
        )
        bench.send(name, raw)
    bench.wait(lambda: any(h.runs[0].reason == "target_metric" for h in _heads(bench)))
    assert service.ended.wait(10)


LATE = """
from fledge import Strategy

class Late(Strategy):
    name = "late"
    mended = False

    def merge(self, old, deltas, step, state, out, out_state, scratch):
        if old.size > 4 and not self.mended:
            exit()  # after the trial, on a real model
        out[...] = old + deltas[0]
"""


def test_a_strategy_that_fails_in_use_pauses_its_run_and_the_hub_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "late", {"late": LATE}, {"fledge.strategies": {"late": "late:Late"}})
    service = bench.start(strategy={"name": "late"})
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE))
    bench.wait(lambda: "paused" in bench.happened)
    assert (service.rules.runs[RUN].state, service.rules.runs[RUN].reason) == (RunState.PAUSED, "strategy_failed")
    importlib.import_module("late").Late.mended = True
    bench.command("run.resume", 1)
    bench.wait_outcome("site-0", Outcome.MERGED)
    np.testing.assert_array_equal(model(bench, 1)["weight"], ONE["weight"])
    assert service.rules.runs[RUN].state == RunState.RUNNING


def test_a_restart_goes_on_where_it_was(bench: Bench) -> None:
    first = bench.start()
    bench.send("site-0", bench.sites["site-0"].update(ONE))
    bench.wait(lambda: "validated" in bench.happened)
    first.stop()
    first.join(20)
    bench.start()
    bench.send("site-1", bench.sites["site-1"].update(ONE))
    for site in ("site-0", "site-1"):
        bench.wait_outcome(site, Outcome.MERGED)


def test_a_second_aggregator_takes_over_and_the_first_is_fenced(bench: Bench) -> None:
    first = bench.start()
    with capture_logs() as logs:
        second = bench.start()
        for site in ("site-0", "site-1"):
            bench.send(site, bench.sites[site].update(ONE))
        with pytest.raises(Fenced):
            _join(first)
    [told] = [log for log in logs if log["event"] == "lease.taken_over"]
    assert (told["log_level"], told["pid"], told["runs"]) == ("warning", os.getpid(), True)
    assert last_holder(bench.state / HEALTH) is not None  # it is the second's, which goes on
    for site in ("site-0", "site-1"):
        bench.wait_outcome(site, Outcome.MERGED)
    assert second.rules.runs[RUN].version == 1


def _join(service: AggregatorService) -> None:
    assert service.ended.wait(20)
    service.join(20)


def test_an_aggregator_that_ended_in_order_says_so_and_its_successor_takes_nothing_over(bench: Bench) -> None:
    with capture_logs() as logs:
        for _ in range(2):
            service = bench.start()
            service.stop()
            _join(service)
    said = [log["event"] for log in logs]
    assert said.count("aggregator.stopped") == 2
    assert "lease.taken_over" not in said


def test_a_new_registry_gives_a_new_site_the_current_version_and_cuts_off_a_revoked_one(bench: Bench) -> None:
    service = bench.start()
    bench.send("site-1", bench.sites["site-1"].update(ONE))
    bench.wait(lambda: "validated" in bench.happened)
    newcomer = Identity.generate("site-9", Role.SITE)
    registry = bench.federation.registry.with_entry(newcomer.public).revoke("site-1")
    announced = bench.inbox[topology.down_queue("site-0")]
    service.update_registry(sign_registry(registry, bench.federation.root, FEDERATION, bytes(16)))
    bench.wait(lambda: any(raw[5] == Kind.VERSION for raw in announced))
    [record] = [raw for raw in announced if raw[5] == Kind.VERSION]
    verified = verify(record, registry, federation=FEDERATION, kinds={Kind.VERSION}, limit=limits.STORED_RECORD)
    assert unlock(verified, newcomer)
    assert bench.federation.members["site-1"].box_kid not in verified.recipients
    assert bench.head().registry != bytes(32)


def test_a_replay_gives_the_same_bytes_and_a_what_if_does_not(bench: Bench, tmp_path: Path) -> None:
    bench.start(stop={"max_versions": 3})
    dice = np.random.default_rng(3)
    for number in range(6):
        site = f"site-{number % 3}"
        delta = {name: dice.standard_normal(value.shape) for name, value in ONE.items()}
        bench.send(site, bench.sites[site].update(delta, seconds=float(1 + number)))
        if number % 2:
            bench.wait_outcome(site, Outcome.MERGED, count=(number + 3) // 3)
    bench.stop()
    replay = bench.replay()
    assert [r.same for r in replay.versions()] == [True] * 3
    assert [r.same for r in replay.versions(2)] == [True] * 2
    assert not all(r.same for r in replay.versions(what_if=WhatIf(without=("site-1",))))
    assert not any(r.same for r in replay.versions(what_if=WhatIf(strategy=strategy("fedadam"))))
    assert audit(replay.history, RUN) == []
    with pytest.raises(StateError, match="no version 4"):
        list(replay.versions(4))
    out = b"".join(replay.model(3, WhatIf(), released=False))
    np.testing.assert_array_equal(tensors(SMALL, out)["bias"], model(bench, 3)["bias"])
    path = tmp_path / "model.safetensors"
    assert write_file(path, cut(out)) == SMALL.model_length
    with pytest.raises(StateError, match="exists already"):
        write_file(path, cut(out))


def test_a_damaged_own_copy_costs_a_second_look_and_nothing_else(bench: Bench) -> None:
    bench.start()
    bench.send("site-0", bench.sites["site-0"].update(ONE))
    bench.wait(lambda: "validated" in bench.happened)
    for path in (bench.state / "cache").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    bench.send("site-1", bench.sites["site-1"].update(ONE))
    bench.wait_outcome("site-0", Outcome.MERGED)
    assert [r.same for r in bench.replay().versions()] == [True]


def test_garbage_is_what_no_journal_refers_to_and_a_replay_still_works_after_its_collection(bench: Bench) -> None:
    bench.start(stop={"max_versions": 1})
    bench.send("site-2", bench.sites["site-2"].update({**ONE, "bias": np.full(3, np.nan)}))
    bench.wait_outcome("site-2", Outcome.REJECTED, "not_finite")
    for site in ("site-0", "site-1"):
        bench.send(site, bench.sites[site].update(ONE))
        bench.sites[site].update(ONE)  # uploaded, never announced
    bench.wait_outcome("site-1", Outcome.MERGED)
    bench.stop()
    replay, registry = bench.replay(), bench.federation.registry
    keys = References(replay.history, FEDERATION, registry, bench.federation.aggregator.public).keys()
    assert all(bench.store.has(key) for key in keys)
    young = collect_garbage(bench.store, keys, registry, older_than_days=14)
    old = collect_garbage(bench.store, keys, registry, older_than_days=-1)
    assert (young.count, old.count) == (0, 3)
    assert {info.key for info in bench.store.list("")} == keys
    assert [r.same for r in replay.versions()] == [True]


def open_files(directory: Path) -> list[str]:
    """What this process has open below a directory."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for link in links if os.path.lexists(link) and (path := os.readlink(link)).startswith(str(directory))]


def test_nothing_is_left_open_of_an_aggregator_that_cannot_be_put_together(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise StateError("no room")

    monkeypatch.setattr(assembly, "Responder", fail)
    before = set(threading.enumerate())
    for _ in range(2):
        with pytest.raises(StateError, match="no room"):
            bench.start()
    assert open_files(bench.state) == []
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "aggregator head"]


def test_an_aggregator_that_was_never_started_is_closed_by_its_stop(bench: Bench) -> None:
    bench.start()
    bench.stop()
    service = assemble_aggregator(
        bench.federation.aggregator_settings(),
        transport=MemoryTransport.named(bench.network),
        store=bench.store,
        state=bench.state,
    )
    assert open_files(bench.state)
    service.stop()
    service.stop()
    service.join(10)
    assert open_files(bench.state) == []


def test_settings_of_a_run_that_cannot_be_used_are_refused_and_not_kept(bench: Bench) -> None:
    bench.start()
    bench.stop()
    for wrong in (
        {"name": "fedbuff", "rate": -1},
        {"name": "unheard-of"},
        {"name": "fedbuff", "rate": date.today()},
    ):
        with pytest.raises(ConfigError):
            bench.start(strategy=wrong)
    alone = assemble_aggregator(
        bench.federation.aggregator_settings(),
        transport=MemoryTransport.named(bench.network),
        store=bench.store,
        state=bench.state,
    )
    assert [context.config.strategy.parameters for context in alone.serving.values()] == [{"buffer": 2, "rate": 1.0}]
    alone.stop()


def test_a_run_without_version_0_says_how_to_make_one(tmp_path: Path) -> None:
    federation = Federation()
    with pytest.raises(ConfigError, match="init-run"):
        assemble_aggregator(
            federation.aggregator_settings(),
            transport=MemoryTransport.named("memory:"),
            store=MemoryBlobs(),
            state=tmp_path,
            first=FirstRun(config=RunConfig(name=RUN)),
        )


@pytest.mark.parametrize(
    ("refused", "event"),
    [(NotAllowed("403"), "topology.declared_by_others"), (LoginRefused("login refused"), "topology.login_refused")],
)
def test_a_refused_login_is_not_taken_for_a_topology_that_others_declare(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, refused: NotAllowed, event: str
) -> None:
    bench.transport.declare(topology.topology(list(bench.sites)))

    def declare(*_: object) -> None:
        raise refused

    monkeypatch.setattr(MemoryTransport, "declare", declare)
    with capture_logs() as logs:
        bench.start()
    assert [log["event"] for log in logs if log["event"].startswith("topology.")] == [event]


def test_a_run_keeps_the_end_that_it_began_with_until_its_file_names_another(bench: Bench) -> None:
    ends: list[dict[str, int]] = [{}, {"max_versions": 7}, {}, {"max_versions": 0}, {}]
    found = []
    for stop in ends:
        bench.start(stop=stop)
        bench.stop()
        kept = History.open(bench.state / "aggregator.db").run(RUN).record().config
        found.append(RunConfig.model_validate_json(kept).stop.max_versions)
    assert found == [DEFAULT_VERSIONS, 7, 7, 0, 0]


def test_a_run_that_an_older_version_began_without_an_end_goes_on_without(bench: Bench) -> None:
    bench.start(stop={"max_versions": 0})
    bench.stop()
    path = bench.state / "aggregator.db"
    kept = History.open(path).run(RUN).record().config
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET config = ?", (kept.replace('"max_versions":0', '"max_versions":null'),))
        db.execute("DROP TABLE reports")  # which older versions had not
    service = bench.start(stop={})
    assert service.rules.runs[RUN].rules.stopping.max_versions is None
    bench.send("site-0", bench.sites["site-0"].update(ONE))
    bench.wait(lambda: "validated" in bench.happened)
