"""A site trains code that an operator deployed: orders, the chain of trust, what is loaded, and restarts in between."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.runtime.health import HEALTH, stuck
from protocol.errors import ConfigError, StoreError, TrainingError, Unauthorized
from protocol.messages import Kind, Reply
from tests.support.fake_aggregator import FEDERATION, RUN, AddOne, Researchers, archive, sha
from tests.support.running_worker import Seen, start, stop
from tests.support.waiting import eventually
from worker.intake import Reader
from worker.pipeline.code_loader import CodeLoader, may_bring_code
from worker.policy import OPEN
from worker.service.service import WorkerService
from worker.storage.code_store import CodeLost, CodeStore
from worker.storage.incidents import Incidents

TRAINER = """\
import os
import threading
from os import getpid

import numpy as np
from helper import STEP
from worker.api.trainer import EvaluationResult, TrainResult


class Adds:
    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def train(self, base, control):
        weights = {name: array + self.step for name, array in base.tensors()}
        return TrainResult(weights=weights, examples=7, steps=1)

    def evaluate(self, model, control):
        return EvaluationResult(examples=1, metrics={"step": float(self.step)})


def trainer(folder="nowhere", step=STEP):
    return Adds(folder, step)


def half():
    return Adds("half", 0.5)


def broken():
    raise ValueError("patient-4711 has no label")


number = 5
"""


def bundle(step: float, **more: str) -> bytes:
    return archive({"trainer.py": TRAINER, "helper.py": f"STEP = {step}\n", **more})


TWO, THREE = bundle(2.0), bundle(3.0)


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Researchers]:
    made = Researchers(request.node.name[:60])
    yield made
    made.close()


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """What is imported before and afterwards is the same."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("trainer", "helper", "extra")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in modules.items() if name not in sys.modules})


# ---- a worker


def test_deployed_code_trains_its_run_and_every_update_says_which_code_it_was(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    with capture_logs() as logs:
        start(hub, tmp_path, None, workers, on_event=seen)
        hub.announce(hub.version(0, value=1.0, evaluate=True, bundle=sha(TWO)))
        seen.wait("waiting", 0)
    [waiting] = [entry for entry in logs if entry["event"] == "run.waiting"]
    assert (waiting["reason"], waiting["todo"]) == ("not_deployed", f"an operator has to order `run deploy {RUN}`")
    waits = f"run {RUN} waits: an operator has to order `run deploy {RUN}`"
    eventually(lambda: stuck(tmp_path / HEALTH) == waits, "the health says so")
    assert (seen.events[-1].code, seen.events[-1].case) == ("not_deployed", "-")
    hub.order("run.deploy", arguments={"run": RUN, "code": sha(TWO).hex(), "record": hub.code(TWO).hex()})
    found = {message.core.kind: message for message in (hub.next_message(), hub.next_message(), hub.next_message())}
    assert hub.body(found[Kind.EVALUATION]).metrics == {"step": 2.0}
    update = found[Kind.UPDATE]
    assert np.array_equal(hub.delta(update), np.full(8, 2.0))
    assert (hub.body(update).bundle, hub.body(update).trainer) == (sha(TWO), "Adds")
    eventually(lambda: stuck(tmp_path / HEALTH) == "", "nothing keeps the site from training")
    # The site's own trainer is none; after a restart the code is still here, and a newer version needs no order.
    stop(workers.pop())
    start(hub, tmp_path, None, workers)
    assert hub.next_message().raw == update.raw
    hub.announce(hub.version(1, bundle=sha(TWO)))
    assert hub.body(hub.update()).bundle == sha(TWO)


def test_runs_with_code_and_without_take_turns(hub: Researchers, workers: list[WorkerService], tmp_path: Path) -> None:
    start(hub, tmp_path, AddOne(), workers, options=lambda run: {"step": 0.25} if run == "third" else {})
    assert hub.deploy(TWO).ok
    assert hub.deploy(THREE, "second").ok
    assert hub.deploy(TWO, "third").ok
    for number, run, code, step in (
        (0, RUN, TWO, 2.0),
        (0, "second", THREE, 3.0),
        (0, "own", None, 1.0),
        (1, RUN, TWO, 2.0),
        (0, "third", TWO, 0.25),
        (1, "own", None, 1.0),
    ):
        hub.announce(hub.version(number, bundle=code and sha(code), run=run))
        update = hub.update()
        assert (update.core.run, hub.body(update).bundle) == (run, code and sha(code))
        assert np.array_equal(hub.delta(update), np.full(8, step))
    assert not {"trainer", "helper"} & sys.modules.keys()


def test_the_task_may_name_another_factory_of_the_code(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hub, tmp_path, None, workers)
    assert hub.deploy(TWO).ok
    hub.announce(hub.version(0, bundle=sha(TWO), task={"trainer": "trainer:half"}))
    assert np.array_equal(hub.delta(hub.update()), np.full(8, 0.5))


def test_code_that_fails_is_told_by_a_word_and_a_case_alone(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    start(hub, tmp_path, None, workers, on_event=seen)
    assert hub.deploy(TWO).ok
    hub.announce(hub.version(0, bundle=sha(TWO), task={"trainer": "trainer:broken"}))
    seen.wait("blocked", 0)
    assert seen.events[-1].code == "trainer"
    assert "patient-4711" in Incidents(tmp_path / "cases").text(seen.events[-1].case)


def test_code_that_was_damaged_is_not_executed_and_is_asked_for_again(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    start(hub, tmp_path, None, workers, on_event=seen)
    assert hub.deploy(TWO).ok
    (tmp_path / "code" / f"{sha(TWO).hex()}.zip").write_bytes(THREE)
    hub.announce(hub.version(0, bundle=sha(TWO)))
    seen.wait("waiting", 0)
    assert seen.events[-1].code == "not_deployed"
    assert hub.inbound.empty()
    stop(workers.pop())
    start(hub, tmp_path, None, workers)
    hub.order("run.deploy", arguments={"run": RUN, "code": sha(TWO).hex(), "record": hub.code(TWO).hex()})
    assert {hub.next_message().core.kind, hub.next_message().core.kind} == {Kind.REPLY, Kind.UPDATE}


def test_a_run_is_left_joined_and_withdrawn_with_everything_that_was_kept_of_it(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    seen = Seen()
    start(hub, tmp_path, None, workers, on_event=seen)
    assert hub.deploy(TWO).ok
    assert hub.run_order("run.leave", run=RUN).ok
    stop(workers.pop())
    start(hub, tmp_path, None, workers, on_event=seen)
    hub.announce(hub.version(0, bundle=sha(TWO)))
    seen.wait("waiting", 0)
    assert seen.events[-1].code == "left"
    assert hub.run_order("run.join", run="unheard-of").reason == "unknown_run"
    hub.order("run.join", arguments={"run": RUN})
    assert {hub.next_message().core.kind, hub.next_message().core.kind} == {Kind.REPLY, Kind.UPDATE}
    own = tmp_path / "own"
    own.mkdir()
    kept = workers[0]._parts.training._own._path(RUN)
    kept.write_bytes(b"what the site keeps to itself")
    assert hub.run_order("run.withdraw", run=RUN).reason == "run_goes_on"
    assert hub.run_order("run.leave", run=RUN).ok
    assert hub.run_order("run.withdraw", run=RUN).ok
    assert hub.run_order("run.withdraw", run=RUN).ok  # and with its answer the lane has come past the deletion
    assert list((tmp_path / "code").iterdir()) == []
    assert workers[0]._train.stop(10)
    assert not kept.exists()


# ---- who may, and whom to believe


def refused(hub: Researchers, reply: Reply, state: Path, reason: str, text: str) -> None:
    assert (reply.ok, reply.reason) == (False, reason), reply
    assert text in reply.text
    assert str(state) not in reply.text
    assert not list((state / "code").glob("*")) if (state / "code").exists() else True


def test_an_operator_without_the_right_deploys_nothing(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    hub.allow("relaxed", "general", roles=("lead_it",))
    start(hub, tmp_path, None, workers)
    refused(hub, hub.deploy(TWO), tmp_path, "not_authorized", "not authorized to deploy to alpha")


def test_a_site_that_allows_no_code_of_others_refuses_it(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    hub.allow("strict", "general")
    start(hub, tmp_path, AddOne(), workers)
    refused(hub, hub.deploy(TWO), tmp_path, "byoc_not_allowed", "contains custom code, which is not allowed on site")
    assert hub.run_order("run.deploy", run=RUN, code="", record="").ok


@pytest.mark.parametrize("listed", [(), (sha(THREE).hex(),)])
def test_code_that_the_sites_policy_does_not_list_is_refused(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path, listed: tuple[str, ...]
) -> None:
    start(hub, tmp_path, None, workers, policy=OPEN.model_copy(update={"code": listed}))
    refused(hub, hub.deploy(TWO), tmp_path, "code_not_listed", sha(TWO).hex())
    assert not listed or hub.deploy(THREE).ok


def test_a_hub_that_holds_other_code_ready_than_the_order_names_is_caught(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hub, tmp_path, None, workers)
    refused(hub, hub.deploy(THREE, code=sha(TWO).hex()), tmp_path, "tampered", "the order names")


def test_a_record_of_another_kind_run_or_recipient_is_refused(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hub, tmp_path, None, workers)
    version = sha(hub.version(0)).hex()
    refused(hub, hub.deploy(TWO, record=version), tmp_path, "wrong_kind", "VERSION")
    refused(hub, hub.deploy(TWO, record=hub.code(TWO, "other").hex()), tmp_path, "wrong_context", "run other")
    ours, hub.site = hub.site, hub.identity
    strange = hub.code(TWO).hex()
    hub.site = ours
    refused(hub, hub.deploy(TWO, record=strange), tmp_path, "not_for_us", "alpha")
    refused(hub, hub.deploy(b"no archive"), tmp_path, "malformed", "archive")
    assert hub.deploy(TWO).ok


@pytest.mark.parametrize(
    "changes",
    [
        {"run": ""},
        {"run": "../x"},
        {"code": "ab"},
        {"record": ""},
        {"code": ""},
        {"more": "x"},
        {"code": 5},
        {"run": 5},
    ],
)
def test_an_order_with_wrong_arguments_is_answered_with_what_is_wrong(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    start(hub, tmp_path, None, workers)
    refused(hub, hub.deploy(TWO, **changes), tmp_path, "not_possible", "run.deploy")


def test_an_order_that_comes_while_the_store_is_away_can_be_given_again(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(hub, tmp_path, None, workers)
    refused(hub, hub.deploy(TWO, record=sha(b"nothing").hex()), tmp_path, "not_possible", "order it again")

    def away(key: str, limit: int) -> bytes:
        raise StoreError("https://proxy.ward-3.example says 503")

    with monkeypatch.context() as broken:
        broken.setattr(hub.store, "get", away)
        reply = hub.deploy(TWO)
        refused(hub, reply, tmp_path, "not_possible", "order it again")
        assert "ward-3" not in reply.text
    reply = hub.deploy(TWO)
    assert (reply.ok, reply.values) == (True, {"code": sha(TWO).hex()})
    assert hub.deploy(TWO).ok


def test_a_site_whose_disk_takes_nothing_says_so_without_naming_it(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hub, tmp_path, None, workers)
    (tmp_path / "code").write_text("in the way")
    reply = hub.deploy(TWO)
    assert (reply.reason, str(tmp_path) in reply.text) == ("not_possible", False)
    assert "ask somebody there" in reply.text


def test_what_nobody_is_deployed_with_is_swept_at_the_next_start(
    hub: Researchers, workers: list[WorkerService], tmp_path: Path
) -> None:
    start(hub, tmp_path, None, workers)
    assert hub.deploy(TWO).ok
    stop(workers.pop())
    CodeStore(tmp_path / "code").keep(sha(THREE), THREE)  # as a crash between keeping and noting leaves it
    start(hub, tmp_path, None, workers)
    assert {path.name[:64] for path in (tmp_path / "code").iterdir()} == {sha(TWO).hex()}


# ---- loading


@pytest.fixture
def codes(tmp_path: Path) -> CodeStore:
    made = CodeStore(tmp_path / "code")
    for raw in (TWO, THREE):
        made.keep(sha(raw), raw)
    return made


def loader(
    hub: Researchers, codes: CodeStore, options: Mapping[str, Any] | None = None, policy: Any = OPEN
) -> CodeLoader:
    reader = Reader(hub.site, FEDERATION, hub.registry)
    return CodeLoader(codes, lambda: reader, policy, lambda run: options or {})


def test_a_trainer_is_made_once_and_used_as_long_as_its_run_trains(hub: Researchers, codes: CodeStore) -> None:
    deployed = loader(hub, codes)
    first: Any = deployed.trainer("r", sha(TWO), {})
    assert deployed.trainer("r", sha(TWO), {"lr": 2}) is first
    other: Any = deployed.trainer("s", sha(TWO), {})
    assert other is not first
    assert type(other) is not type(first)
    third: Any = deployed.trainer("r", sha(THREE), {})
    assert (first.step, other.step, third.step) == (2.0, 2.0, 3.0)
    assert sys.modules["helper"].STEP == 3.0
    deployed.put_away()
    assert not [entry for entry in sys.path if str(codes.directory) in entry]
    assert not {"trainer", "helper"} & sys.modules.keys()


def test_modules_of_the_sites_own_trainer_are_set_aside_and_come_back(
    hub: Researchers, codes: CodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper.py").write_text("STEP = 'of the site'")
    monkeypatch.syspath_prepend(str(tmp_path))
    import helper

    deployed = loader(hub, codes)
    made: Any = deployed.trainer("r", sha(TWO), {})
    assert made.step == 2.0
    deployed.put_away()
    assert sys.modules["helper"] is helper


def test_workers_of_one_process_get_each_their_own_code(hub: Researchers, codes: CodeStore, tmp_path: Path) -> None:
    others = CodeStore(tmp_path / "other" / "code")
    others.keep(sha(THREE), THREE)
    first, second = loader(hub, codes), loader(hub, others)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            one = pool.submit(first.trainer, "r", sha(TWO), {})
            two = pool.submit(second.trainer, "r", sha(THREE), {})
            made: list[Any] = [one.result(), two.result()]
            assert [trainer.step for trainer in made] == [2.0, 3.0]
            first.put_away()
            second.put_away()
    assert not {"trainer", "helper"} & sys.modules.keys()


def test_the_sites_options_reach_the_factory_and_those_it_does_not_take_are_told(
    hub: Researchers, codes: CodeStore
) -> None:
    made: Any = loader(hub, codes, {"folder": "/data", "step": 9}).trainer("r", sha(TWO), {})
    assert (made.folder, made.step) == ("/data", 9)
    with pytest.raises(ConfigError, match=r'worker\.toml.*\[runs\."r"\.options\]'):
        loader(hub, codes, {"fold": "/data"}).trainer("r", sha(THREE), {})
    assert "trainer" not in sys.modules


@pytest.mark.parametrize(
    "named",
    [
        *("os:getcwd", "this:c", "trainer:nothing", "nothing:trainer", "trainer:number", "trainer", 5),
        *("trainer:os.getcwd", "trainer:getpid", "trainer:__loader__.get_filename", "trainer:threading.active_count"),
    ],
)
def test_only_a_factory_in_the_code_itself_is_called(hub: Researchers, codes: CodeStore, named: Any) -> None:
    with pytest.raises(TrainingError):
        loader(hub, codes).trainer("r", sha(TWO), {"trainer": named})
    assert "this" not in sys.modules
    assert not {"trainer", "helper"} & sys.modules.keys()
    assert not [entry for entry in sys.path if str(codes.directory) in entry]


@pytest.mark.parametrize("hidden", ["worker/__init__.py", "json.py", "protocol/x.py", "nacl.py"])
def test_code_that_would_hide_our_modules_or_pythons_is_not_loaded(
    hub: Researchers, codes: CodeStore, hidden: str
) -> None:
    raw = bundle(2.0, **{hidden: ""})
    codes.keep(sha(raw), raw)
    with pytest.raises(TrainingError, match="would hide"):
        loader(hub, codes).trainer("r", sha(raw), {})


def test_what_was_forbidden_since_the_deployment_is_not_loaded(hub: Researchers, codes: CodeStore) -> None:
    with pytest.raises(ConfigError, match="does not list"):
        loader(hub, codes, policy=OPEN.model_copy(update={"code": ()})).trainer("r", sha(TWO), {})
    with pytest.raises(CodeLost):
        loader(hub, codes).trainer("r", sha(b"never kept"), {})
    hub.allow("strict", "general")
    with pytest.raises(Unauthorized, match="which is not allowed on site alpha"):
        loader(hub, codes).trainer("r", sha(TWO), {})
    with pytest.raises(Unauthorized):
        may_bring_code(Reader(hub.site, FEDERATION, hub.registry), "r")
