"""Runs that operators bring: taken over, started, cloned, deleted, and what becomes of their models."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.audit.retention import References
from broker.blobs.memory import MemoryBlobs
from fledge.operator.console import Answer
from protocol import limits, topology
from protocol.blob import CallbackSink
from protocol.codec import encode
from protocol.envelope import Sealer, Verified, body, unlock, verify
from protocol.keys import Identity
from protocol.messages import Bundle, Card, Evaluation, Kind, Outcome, RunState, Version
from tests.support.bodies import typed_body
from tests.support.chunks import stored, write_blob
from tests.support.federation import FEDERATION, RUN, SMALL, payload, tensors
from tests.support.packages import install
from tests.support.running_aggregator import ONE, ZERO, Hub, one

NEW = "brought"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as hub:
        hub.start()
        yield hub


ONCE = """
from fledge import Strategy

made = []

class Once(Strategy):
    name = "once"

    def __init__(self):
        made.append(self)
        if len(made) > 1:
            raise RuntimeError("once is enough")

    def merge(self, old, deltas, step, state, out, out_state, scratch):
        out[...] = old
"""


def code(text: str = "def trainer(**options): ...") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("trainer.py"), text)  # dated 1980, so that it is the same every time
    return made.getvalue()


def upload(
    hub: Hub,
    name: str = NEW,
    *,
    by: Identity | None = None,
    archive: bytes = b"",
    model: bytes | None = None,
    config: bytes = b'name = "another"\n[strategy]\nname = "fedbuff"\nbuffer = 1\nrate = 1.0\n',
    **changes: Any,
) -> str:
    """Bring a run as an operator's console does; returns the record's digest."""
    operator, spec = by or hub.federation.operator, SMALL.to_bytes()
    data = archive + spec + (payload(SMALL, ZERO, update=False) if model is None else model)
    says = {"config": config, "code": len(archive), "spec": len(spec), **changes}
    sealer = Sealer(
        operator,
        Kind.BUNDLE,
        federation=FEDERATION,
        message_id=os.urandom(16),
        run=name,
        spec=SMALL.digest,
        length=len(data),
    )
    key = partial(topology.bundle_key, operator.name)
    writer = sealer.writer(CallbackSink(lambda digest, chunk: hub.store.put(key(digest.hex()), chunk)))
    write_blob(writer, data)
    raw = sealer.finish(encode(Bundle(**says)), [hub.federation.aggregator.public], writer.finish())
    digest = hashlib.sha256(raw).hexdigest()
    hub.store.put(key(digest), raw)
    return digest


def create(hub: Hub, name: str = NEW, **more: Any) -> Answer:
    return one(hub.console().ask("run.create", {"run": name, "record": upload(hub, name, **more)}))


def opened(hub: Hub, digest: str, kind: Kind, reader: Identity) -> tuple[Verified, Any]:
    raw = hub.store.get(topology.record_key(digest), limits.STORED_RECORD)
    verified = verify(raw, hub.federation.registry, federation=FEDERATION, kinds={kind}, limit=limits.STORED_RECORD)
    return verified, unlock(verified, reader)


def plaintext(hub: Hub, verified: Verified, key: Any) -> bytes:
    assert verified.manifest is not None
    return stored(hub.store, key.reader(verified.manifest), topology.model_chunk)


def runs(hub: Hub) -> dict[str, str]:
    said = one(hub.console().ask("run.list", {})).values
    return dict(zip(said["run"], said["state"], strict=True))


def test_a_run_that_was_brought_is_in_no_head_until_it_is_started_and_trains_then(hub: Hub) -> None:
    archive = code()
    said = create(hub, archive=archive)
    assert (said.ok, said.values["code"]) == (True, hashlib.sha256(archive).hexdigest())
    assert (said.values["size"], said.values["version"]) == (SMALL.model_length, 0)
    assert runs(hub) == {RUN: "running", NEW: "created"}
    assert [run.run for run in hub.head().runs] == [RUN]

    assert one(hub.console().ask("run.start", {"run": NEW})).ok
    hub.wait(lambda: [run.run for run in hub.head().runs] == [RUN, NEW])
    bundle = hashlib.sha256(archive).digest()
    site = hub.sites["site-0"]
    hub.send("site-0", site.update(ONE, run=NEW, bundle=bundle))
    hub.wait_outcome("site-0", Outcome.MERGED)
    hub.wait(lambda: hub.head().runs[1].version == 1)
    record, key = opened(hub, hub.head().runs[1].record.hex(), Kind.VERSION, hub.federation.members["site-0"])
    assert body(record, Version, key).bundle == bundle
    hub.send("site-1", hub.sites["site-1"].update(ONE, run=NEW))
    hub.wait_outcome("site-1", Outcome.REJECTED, "wrong_code")


def test_a_run_outlives_its_aggregator_with_everything_that_was_ordered(hub: Hub) -> None:
    create(hub, archive=code())
    hub.console().ask("run.start", {"run": NEW})
    hub.services[0].stop()
    hub.services[0].join(20)
    again = hub.start()
    assert {name: run.state for name, run in again.rules.runs.items()} == {
        RUN: RunState.RUNNING,
        NEW: RunState.RUNNING,
    }
    assert again.rules.runs[NEW].rules.bundle == hashlib.sha256(code()).digest()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"config": b"name ="}, "not valid TOML"),
        ({"config": b'name = "x"\nsurprise = 1'}, "surprise"),
        ({"config": b'name = "x"\n[strategy]\nname = "guess"'}, "guess"),
        ({"config": b'name = "x"\ngrace = inf'}, "grace"),
        ({"config": b'name = "x"\nheartbeat = nan'}, "heartbeat"),
        ({"config": b'name = "x"\nmin_sites = 99999999999999999999999'}, "min_sites"),
        ({"config": b'name = "x"\n[strategy]\nname = "fedadam"\ntau = inf'}, "run.toml"),
        ({"config": b'name = "x"\n[strategy]\nname = "fedbuff"\nstaleness = 1979-05-27'}, "run.toml"),
        ({"config": b'name = "x"\n[strategy]\nstaleness = ' + b"[" * 250 + b"]" * 250}, "run.toml"),
        ({"config": b'name = "x"\ntask = ' + b"[" * 20_000 + b"]" * 20_000}, "not valid TOML"),
        ({"model": payload(SMALL, ZERO, update=False) + bytes(4)}, "not what its specification"),
        ({"model": payload(SMALL, ZERO | {"bias": np.full(3, np.nan, np.float32)}, update=False)}, "not finite"),
        (
            {"config": b'name = "x"\n[strategy]\nname = "median:Median"', "archive": code()},
            f'adds "{hashlib.sha256(code()).hexdigest()}" to allow_strategy_code in aggregator.toml',
        ),
        ({"config": b'name = "x"\n[strategy]\nname = "median:Median"'}, "the run brings no code"),
        ({"spec": 3}, "specification"),
        ({"code": 7}, "specification"),
    ],
)
def test_a_run_that_cannot_be_trained_is_refused_with_the_reason(hub: Hub, more: dict[str, Any], text: str) -> None:
    said = create(hub, **more)
    assert (said.ok, said.reason) == (False, "not_possible")
    assert text in said.text
    assert runs(hub) == {RUN: "running"}


def test_an_upload_is_its_operators_own_and_for_one_name(hub: Hub) -> None:
    stranger = one(hub.console().ask("run.create", {"run": NEW, "record": "ab" * 32}))
    assert (stranger.ok, "no upload" in stranger.text) == (False, True)
    other = one(hub.console().ask("run.create", {"run": "other", "record": upload(hub)}))
    assert (other.ok, "not other" in other.text) == (False, True)
    assert one(hub.console().ask("run.create", {"run": NEW, "record": "../" * 3})).reason == "not_possible"


def test_names_of_runs_are_used_once_also_after_a_run_is_deleted(hub: Hub) -> None:
    assert create(hub).ok
    assert create(hub).reason == "run_exists"
    assert one(hub.console().ask("run.delete", {"run": RUN})).reason == "run_running"
    assert one(hub.console().ask("run.delete", {"run": NEW})).ok
    assert runs(hub) == {RUN: "running"}
    assert create(hub).reason == "run_exists"
    service = hub.services[0]
    assert service.journal.names() == (RUN,)


def test_what_still_arrives_for_a_deleted_run_gets_its_receipt_and_the_same_one_again(hub: Hub) -> None:
    create(hub)
    hub.console().ask("run.start", {"run": NEW})
    first = hub.send("site-0", hub.sites["site-0"].update(ONE, run=NEW))
    hub.wait_outcome("site-0", Outcome.MERGED)
    assert one(hub.console().ask("run.stop", {"run": NEW})).ok
    assert one(hub.console().ask("run.delete", {"run": NEW})).ok
    hub.send("site-0", first)
    hub.wait_outcome("site-0", Outcome.MERGED, count=2)
    hub.send("site-0", hub.sites["site-0"].update(ONE, run=NEW))
    hub.wait_outcome("site-0", Outcome.REJECTED, "wrong_run")


def test_a_clone_begins_with_the_others_version_0_code_and_settings(hub: Hub) -> None:
    archive = code()
    create(hub, archive=archive)
    said = one(hub.console().ask("run.clone", {"run": NEW, "as": "second"}))
    assert (said.ok, said.values["code"]) == (True, hashlib.sha256(archive).hexdigest())
    shown = one(hub.console().ask("run.show", {"run": "second"})).values
    assert (shown["name"], shown["state"], shown["strategy.buffer"]) == ("second", "created", 1)
    assert one(hub.console().ask("run.clone", {"run": NEW, "as": "second"})).reason == "run_exists"
    serving = hub.services[0].serving
    registry = hub.federation.registry
    first, second = (it.records.open(it.record, registry, Kind.VERSION) for it in (serving[NEW], serving["second"]))
    assert first.blob.manifest.digest == second.blob.manifest.digest
    assert serving[NEW].spec is serving["second"].spec


def test_code_is_offered_to_the_sites_there_are_and_is_what_was_brought(hub: Hub) -> None:
    archive = code()
    create(hub, archive=archive)
    said = one(hub.console().ask("run.offer", {"run": NEW})).values
    assert said["code"] == hashlib.sha256(archive).hexdigest()
    record, key = opened(hub, said["record"], Kind.CODE, hub.federation.members["site-2"])
    assert record.core.run == NEW
    assert plaintext(hub, record, key) == archive
    assert one(hub.console().ask("run.offer", {"run": RUN})).values == {"code": "", "record": ""}


def test_which_run_is_meant_has_to_be_said_where_several_come_into_question(hub: Hub) -> None:
    assert one(hub.console().ask("run.pause", {})).ok
    create(hub)
    hub.console().ask("run.start", {"run": NEW})
    said = one(hub.console().ask("run.stop", {}))
    assert (said.reason, "several runs" in said.text) == ("which_run", True)
    assert one(hub.console().ask("run.stop", {"run": "nowhere"})).reason == "unknown_run"


def merged(hub: Hub) -> None:
    for site in ("site-0", "site-1"):
        hub.send(site, hub.sites[site].update(ONE))
    hub.wait_outcome("site-1", Outcome.MERGED)


def test_an_exported_model_is_for_one_operator_and_what_the_version_holds(hub: Hub) -> None:
    merged(hub)
    said = one(hub.console().ask("model.export", {"run": RUN, "version": 1, "raw": True}))
    record, key = opened(hub, said.values["record"], Kind.CARD, hub.federation.operator)
    card: Card = typed_body(record, key)
    assert (record.core.run, record.core.version, card.sites) == (RUN, 1, ("site-0", "site-1"))
    np.testing.assert_array_equal(tensors(SMALL, plaintext(hub, record, key))["weight"], ONE["weight"])
    assert hub.federation.members["site-0"].public.box_kid not in record.recipients
    missing = one(hub.console().ask("model.export", {"run": RUN, "version": 9}))
    assert "no version 9" in missing.text


def test_a_published_model_is_found_promoted_and_rolled_back_and_is_not_garbage(hub: Hub) -> None:
    merged(hub)
    ask = hub.console().ask
    measured = Evaluation(examples=10, metrics={"dice": 0.5})
    site = hub.federation.members["site-1"]
    raw = _evaluation(hub, site, measured)
    hub.send("site-1", raw)
    hub.wait(lambda: bool(one(ask("metrics", {"run": RUN})).values["site"]))
    details = {"application": "spleen CT", "labels": ("ct", "spleen"), "licence": "CC-BY-4.0"}
    said = one(ask("model.publish", {"run": RUN, "version": 1, "name": "spleen-1", **details}))
    assert said.ok, said.text
    assert one(ask("model.publish", {"run": RUN, "name": "spleen-1"})).reason == "name_taken"
    assert one(ask("model.publish", {"run": RUN, "version": 0, "name": "spleen-0"})).ok
    record, key = opened(hub, said.values["record"], Kind.CARD, site)
    card: Card = typed_body(record, key)
    assert (card.application, card.labels, card.licence) == ("spleen CT", ("ct", "spleen"), "CC-BY-4.0")
    assert [(m.site, m.metrics) for m in card.measurements] == [("site-1", {"dice": 0.5})]

    assert one(ask("model.promote", {"name": "nothing", "channel": "production"})).reason == "unknown_model"
    assert one(ask("model.promote", {"name": "spleen-0", "channel": "production"})).ok
    assert one(ask("model.rollback", {"channel": "production"})).reason == "no_model_before"
    assert one(ask("model.promote", {"name": "spleen-1", "channel": "production"})).ok
    found = one(ask("model.search", {"channel": "production"})).values
    assert (found["name"], found["version"], found["labels"]) == (("spleen-1",), (1,), ("ct, spleen",))
    assert one(ask("model.search", {"text": "SPLEEN ct", "label": "ct"})).values["name"] == ("spleen-1",)
    assert one(ask("model.rollback", {"channel": "production"})).ok
    assert one(ask("model.card", {"name": "production"})).values["name"] == "spleen-0"

    journal, member = hub.services[0].journal, hub.federation.aggregator.public
    needed = References(journal, FEDERATION, hub.federation.registry, member).keys()
    assert record.manifest is not None
    assert {topology.model_chunk(name.hex()) for name in record.manifest.chunks} <= needed


def _evaluation(hub: Hub, site: Identity, measured: Evaluation) -> bytes:
    from protocol.envelope import seal

    return seal(
        site,
        Kind.EVALUATION,
        measured,
        [hub.federation.aggregator.public],
        federation=FEDERATION,
        message_id=os.urandom(16),
        run=RUN,
        version=1,
        sequence=900,
    )


def test_a_damaged_object_of_one_run_does_not_keep_the_others_from_being_served(hub: Hub) -> None:
    create(hub, archive=code())
    hub.console().ask("run.start", {"run": NEW})
    hub.services[0].stop()
    hub.services[0].join(20)
    assert isinstance(hub.store, MemoryBlobs)
    for info in [*hub.store.list("models/"), *hub.store.list("state/")]:
        hub.store.delete(info.key)
    shutil.rmtree(hub.state / "cache", ignore_errors=True)
    again = hub.start()
    assert set(again.rules.runs) == {RUN, NEW}
    hub.send("site-0", hub.sites["site-0"].update(ONE))
    hub.wait(lambda: "validated" in hub.happened)
    said = one(hub.console().ask("model.export", {"run": NEW}))
    assert (said.ok, said.reason) == (False, "not_possible")


def test_a_strategy_that_can_be_made_once_serves_its_run_and_ends_no_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "once", {"once": ONCE}, {"fledge.strategies": {"once": "once:Once"}})
    config = b'name = "another"\n[strategy]\nname = "once"\n'
    assert create(hub, config=config).reason == "ok"
    refused = create(hub, "second", config=config)
    assert (refused.reason, "once is enough" in refused.text) == ("not_possible", True)
    assert hub.services[0].serving[NEW].rules.strategy.name == "once"
