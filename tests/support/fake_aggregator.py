"""A hand-made centre: just enough of an aggregator to see whether a worker keeps its side."""

from __future__ import annotations

import hashlib
import io
import itertools
import queue
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.blobs.base import BlobStore
from broker.blobs.memory import MemoryBlobs
from broker.transport.base import Delivery
from broker.transport.memory import MemoryTransport
from protocol import topology
from protocol.blob import CallbackSink, Manifest
from protocol.envelope import Sealer, Verified, seal, unlock, verify
from protocol.keys import Identity, Role
from protocol.messages import (
    Command,
    Grant,
    Head,
    Kind,
    Named,
    Outcome,
    Receipt,
    Reply,
    RunHead,
    RunState,
    Version,
)
from protocol.registry import Registry, sign_registry
from protocol.rights import STOCK, Organisation
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from tests.support.bodies import typed_body
from tests.support.chunks import stored, write_blob
from worker.api.filters import build
from worker.api.trainer import Control, EvaluationResult, TrainResult
from worker.api.weights import Weights
from worker.service.assembly import assemble_worker
from worker.service.service import WorkerService
from worker.service.settings import WorkerSettings

FEDERATION = "test"
RUN = "run-1"
SPEC = ModelSpec((TensorSpec(name="w", shape=(8,), dtype="F32", kind=TensorKind.PARAMETER),))
_ids = itertools.count(1)


def new_id() -> bytes:
    return next(_ids).to_bytes(16, "big")


def archive(files: Mapping[str, str]) -> bytes:
    """A zip archive of these files."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(zipfile.ZipInfo(name), text)
    return raw.getvalue()


class AddOne:
    """A trainer that adds one to every weight; `gate` holds a training up until it is set."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.seeds: list[int] = []
        self.evaluated: list[int] = []
        self.fails: list[Exception] = []
        self.metrics = {"loss": 0.5}

    def train(self, base: Weights, control: Control) -> TrainResult:
        self.seeds.append(control.seed)
        self.started.set()
        control.progress(0.5, loss=1.0)
        while not self.gate.wait(0.01):
            control.check()
        if self.fails:
            raise self.fails.pop(0)
        return TrainResult(
            weights={name: array + 1 for name, array in base.tensors()}, examples=10, steps=1, metrics=self.metrics
        )

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        self.evaluated.append(control.version)
        return EvaluationResult(examples=5, metrics={"accuracy": 0.9})


class Centre:
    """Signs versions, heads and receipts as an aggregator does, and opens what the site sends."""

    def __init__(self, name: str, spec: ModelSpec = SPEC, store: BlobStore | None = None) -> None:
        self.spec = spec
        self.root = Identity.generate("root", Role.ROOT)
        self.identity = Identity.generate("aggregator", Role.AGGREGATOR)
        self.site = Identity.generate("alpha", Role.SITE)
        self.registry = Registry(version=1, entries=())
        for member in (self.identity, self.site):
            self.registry = self.registry.with_entry(member.public)
        self.name = name
        self.transport = MemoryTransport(name)
        self.transport.declare(topology.topology(["alpha"]))
        self.store: Any = store or MemoryBlobs()
        self.registry_record = sign_registry(self.registry, self.root, FEDERATION, new_id())
        self.inbound: queue.Queue[Verified] = queue.Queue()
        self.events: queue.Queue[Verified] = queue.Queue()
        self.requests: queue.Queue[Verified] = queue.Queue()
        self.transport.consume(topology.in_queue("alpha"), self._take(self.inbound))
        self.transport.consume(topology.event_queue("alpha"), self._take(self.events))
        self.number = 0
        self.spec_record = self._put_record(self._seal_blob(Kind.SPEC, 0, spec.to_bytes(), b""))

    def close(self) -> None:
        self.transport.close()

    def _take(self, into: queue.Queue[Verified]) -> Callable[[Delivery], None]:
        def take(delivery: Delivery) -> None:
            kinds = {Kind.UPDATE, Kind.EVALUATION, Kind.EVENT, Kind.REQUEST}
            message = verify(delivery.body, self.registry, federation=FEDERATION, kinds=kinds)
            (self.requests if message.core.kind == Kind.REQUEST else into).put(message)
            delivery.ack()

        return take

    # ---- towards the site

    def model(self, value: float) -> bytes:
        floats = (self.spec.model_length - len(self.spec.header)) // 4
        return self.spec.header + struct.pack("<f", value) * floats

    def _seal_blob(self, kind: Kind, version: int, payload: bytes, body: Any, run: str = RUN) -> bytes:
        sealer = Sealer(
            self.identity,
            kind,
            federation=FEDERATION,
            message_id=new_id(),
            run=run,
            version=version,
            spec=b"" if kind == Kind.CODE else self.spec.digest,
            length=len(payload),
        )
        writer = sealer.writer(
            CallbackSink(lambda name, chunk: self.store.put(topology.model_chunk(name.hex()), chunk))
        )
        write_blob(writer, payload)
        return sealer.finish(body, [self.site.public, self.identity.public], writer.finish())

    def _put_record(self, raw: bytes) -> bytes:
        digest = hashlib.sha256(raw).digest()
        self.store.put(topology.record_key(digest.hex()), raw)
        return digest

    def code(self, raw: bytes, run: str = RUN) -> bytes:
        """Store an archive of code and its record; returns the record's digest."""
        return self._put_record(self._seal_blob(Kind.CODE, 0, raw, b"", run))

    def version(
        self,
        number: int,
        value: float = 0.0,
        *,
        quota: int = 1,
        evaluate: bool = False,
        bundle: bytes | None = None,
        run: str = RUN,
        task: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Store a version and its record; returns the record, which is also its announcement."""
        from protocol.codec import encode

        says = Version(
            parent=None,
            spec_record=self.spec_record,
            updates_per_base=quota,
            max_staleness=100,
            evaluate=evaluate,
            task={"lr": 0.1, **(task or {})},
            registry=self.registry.version,
            bundle=bundle,
        )
        raw = self._seal_blob(Kind.VERSION, number, self.model(value), encode(says), run)
        self._put_record(raw)
        return raw

    def announce(self, raw: bytes) -> None:
        self.transport.publish(topology.GLOBAL, "", raw).result(5)

    def head(self, record: bytes, version: int, state: RunState = RunState.RUNNING, *, ahead: int = 3600) -> bytes:
        self.number += 1
        now = int(time.time())
        run = RunHead(run=RUN, state=state, reason="ok", version=version, record=hashlib.sha256(record).digest())
        head = Head(
            number=self.number,
            issued=now,
            not_after=now + ahead,
            registry=hashlib.sha256(self.registry_record).digest(),
            runs=(run,),
        )
        raw = seal(self.identity, Kind.HEAD, head, (), federation=FEDERATION, message_id=new_id())
        self.store.put_head(FEDERATION, raw)
        return raw

    def receipt(self, update: Verified, outcome: Outcome, *, highest: int = 0, version: int = 1) -> None:
        said = Receipt(
            message=update.core.id,
            epoch=update.core.epoch,
            sequence=update.core.sequence,
            outcome=outcome,
            reason="ok",
            highest_epoch=highest,
        )
        raw = seal(
            self.identity,
            Kind.RECEIPT,
            said,
            [self.site.public],
            federation=FEDERATION,
            message_id=new_id(),
            run=RUN,
            version=version,
        )
        self.transport.publish(topology.DIRECT, "alpha", raw).result(5)

    # ---- from the site

    def next_message(self) -> Verified:
        return self.inbound.get(timeout=10)

    def body(self, message: Verified) -> Any:
        return typed_body(message, unlock(message, self.identity))

    def delta(self, update: Verified) -> NDArray[np.float32]:
        manifest = update.manifest
        assert isinstance(manifest, Manifest)
        key = unlock(update, self.identity)
        payload = stored(self.store, key.reader(manifest), lambda name: topology.update_chunk("alpha", name))
        assert payload.startswith(self.spec.header)
        return np.frombuffer(payload, np.float32, offset=len(self.spec.header))

    # ---- the worker under test

    def worker(self, state: Path, trainer: Any, transport: Any = None, **extra: Any) -> WorkerService:
        chosen: Mapping[str, Any] = {"seed": b"fixed", "heartbeat": 5.0} | {
            key: extra.pop(key)
            for key in ("exclude", "spool_quota", "heartbeat", "seed", "policy", "options", "changed")
            if key in extra
        }
        settings = WorkerSettings(
            federation=FEDERATION,
            identity=self.site,
            registry_record=self.registry_record,
            root=bytes(self.root.sign.verify_key),
            trainer=trainer,
            filters=build([Named(name="unsafe-none", parameters={})]),
            **chosen,
        )
        return assemble_worker(
            settings, transport=transport or MemoryTransport(self.name), store=self.store, state=state, **extra
        )


class Hub(Centre):
    """The centre with an operator in its registry, who gives orders and reads replies."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.operator = Identity.generate("olga", Role.OPERATOR)
        self.registry = self.registry.with_entry(self.operator.public, organisation="clinic", roles=("super",))
        self.registry_record = sign_registry(self.registry, self.root, FEDERATION, new_id())
        self.counter = 0

    def order(
        self, command: str, *, signer: Identity | None = None, targets: tuple[str, ...] = ("alpha",), **changes: Any
    ) -> bytes:
        """Give an order; returns the signed bytes."""
        self.counter += 1
        values = {"counter": self.counter, "expires": int(time.time()) + 60, "command": command, "arguments": {}}
        raw = seal(
            signer or self.operator,
            Kind.COMMAND,
            Command(**{**values, "targets": targets, **changes}),
            [self.identity.public, self.site.public],
            federation=FEDERATION,
            message_id=new_id(),
        )
        self.send(raw)
        return raw

    def send(self, raw: bytes) -> None:
        """Put something into the site's inbox."""
        self.transport.publish(topology.DIRECT, "alpha", raw).result(5)

    def reply(self) -> Reply:
        """The next reply, as the operator reads it."""
        message = self.next_message()
        said: Reply = typed_body(message, unlock(message, self.operator))
        return said

    def grant(self, asked: Verified, *urls: str, signer: Identity | None = None) -> None:
        """Answer a request."""
        body = Grant(message=asked.core.id, head=b"", urls=urls, expires=int(time.time()) + 60)
        raw = seal(
            signer or self.identity,
            Kind.GRANT,
            body,
            [self.site.public],
            federation=FEDERATION,
            message_id=new_id(),
        )
        self.send(raw)

    def _take(self, into: Any) -> Any:
        def take(delivery: Any) -> None:
            kinds = {Kind.UPDATE, Kind.EVALUATION, Kind.EVENT, Kind.REQUEST, Kind.REPLY}
            message = verify(delivery.body, self.registry, federation=FEDERATION, kinds=kinds)
            (self.requests if message.core.kind == Kind.REQUEST else into).put(message)
            delivery.ack()

        return take


def sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


class Researchers(Hub):
    """A hub at whose site code may be brought, as long as nobody says otherwise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.allow("relaxed", "general")

    def allow(self, *groups: str, roles: tuple[str, ...] = ("lead_researcher",)) -> None:
        """Put other rules in force; before the worker starts."""
        registry = self.registry.with_entry(Identity.generate("gone", Role.SITE).public)
        registry = replace(registry, policy=replace(STOCK, organisations=(Organisation(name="clinic", groups=groups),)))
        self.site, self.operator = Identity.generate("alpha", Role.SITE), Identity.generate("olga", Role.OPERATOR)
        registry = registry.with_entry(self.site.public, organisation="clinic")
        self.registry = registry.with_entry(self.operator.public, organisation="clinic", roles=roles)
        self.registry_record = sign_registry(self.registry, self.root, FEDERATION, new_id())
        self.spec_record = self._put_record(self._seal_blob(Kind.SPEC, 0, self.spec.to_bytes(), b""))

    def deploy(self, raw: bytes, run: str = RUN, **changes: str) -> Reply:
        """Have code deployed, and read the answer."""
        given = {"run": run, "code": sha(raw).hex(), "record": self.code(raw, run).hex(), **changes}
        return self.run_order("run.deploy", **given)

    def run_order(self, command: str, **arguments: Any) -> Reply:
        """Give an order about a run, and read the answer."""
        self.order(command, arguments=arguments)
        return self.reply()

    def update(self) -> Verified:
        """The next update."""
        message = self.next_message()
        assert message.core.kind == Kind.UPDATE
        return message
