"""An operator without credentials: a run goes up and a model comes down by URLs that were ordered, on a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker.blobs.s3.grants import Granter
from broker.blobs.s3.store import S3Blobs
from fledge.ctl import model_actions, run_actions
from fledge.ctl.session import Session
from fledge.operator.config import OperatorConfig
from fledge.operator.store import open_store
from fledge.runs.init_run import init_run
from protocol.errors import Forbidden, StoreError
from protocol.messages import Request
from protocol.topology import bundle_key, model_chunk
from tests.support.operator_hub import refused, silent
from tests.support.run_hub import RunHub
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers


class SigningHub(RunHub):
    """Has a bucket, signs URLs for it when it is ordered to, and lets the operator reach it by those alone."""

    def __init__(self, folder: Path, server: S3Server, bucket: str) -> None:
        super().__init__(folder)
        self.central = S3Blobs.from_url(server.url(bucket))
        self.central.put(model_chunk("0" * 64), b"")  # makes the bucket
        self.blobs = self.central
        self.granter = Granter(self.central, self.central, self.federation)
        self.answers |= {"upload.urls": self._put_urls, "download.urls": self._get_urls}
        self.config = OperatorConfig(
            federation=self.federation, broker="memory:", store=f"s3://127.0.0.1:{server.port}/{bucket}", root="0" * 64
        )

    def store(self) -> Any:
        """The store as a kit without credentials opens it."""
        return open_store(self.config, self.kit, self, {})

    def _put_urls(self, arguments: Mapping[str, Any], sender: str) -> Any:
        return self._granted(Request(puts=tuple(map(bytes.fromhex, arguments["puts"])), gets=()))

    def _get_urls(self, arguments: Mapping[str, Any], sender: str) -> Any:
        return self._granted(Request(puts=(), gets=tuple(arguments["gets"])))

    def _granted(self, request: Request) -> Any:
        granted = self.granter.grant_operator("alice", request, time.time())
        return {"urls": granted.urls, "expires": granted.expires}


@pytest.fixture
def hub(tmp_path: Path, s3_server: S3Server, bucket: str) -> Iterator[SigningHub]:
    hub = SigningHub(tmp_path / "kit", s3_server, bucket)
    yield hub
    hub.central.close()


@pytest.fixture
def session(hub: SigningHub) -> Iterator[Session]:
    session = Session(hub.kit, opener=hub.open)
    yield session
    session.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_run("fledge.demo.task:trainer", tmp_path / "chest", name="chest", options={"seed": 3, "hospitals": 2})
    return tmp_path / "chest"


def test_a_run_goes_up_and_a_model_comes_down(hub: SigningHub, session: Session, folder: Path, tmp_path: Path) -> None:
    (created,) = run_actions.create(session, folder)
    assert created.ok
    (pulled,) = model_actions.pull(session, tmp_path / "model", "lung")
    assert pulled.ok
    assert (tmp_path / "model").read_bytes() == (folder / "initial.safetensors").read_bytes()
    asked = [each.command for each in hub.asked]
    assert asked.count("upload.urls") == 2, "one for the only chunk, one for the record"
    assert asked.count("download.urls") == 2


def test_only_ones_own_prefix_and_what_is_published_is_reached(hub: SigningHub) -> None:
    with hub.store() as store:
        for key in (bundle_key("bob", "0" * 64), model_chunk("0" * 64)):
            with pytest.raises(Forbidden):
                store.put(key, b"")
        with pytest.raises(Forbidden):
            store.get(bundle_key("alice", "0" * 64), 10)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (refused("not_possible", ""), Forbidden, "signs no URLs.*FLEDGE_STORE"),
        (refused(), Forbidden, "alice is not authorized"),
        (silent("aggregator"), StoreError, "no URLs for the store: .*not been seen"),
    ],
)
def test_an_operator_learns_why_there_are_no_urls(
    hub: SigningHub, session: Session, folder: Path, answer: Any, error: type[Exception], says: str
) -> None:
    hub.answers["upload.urls"] = answer
    with pytest.raises(error, match=says):
        run_actions.create(session, folder)
    assert "run.create" not in [each.command for each in hub.asked]
