"""The composition root: from configuration files to services. Only here do aggregator and worker meet."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from aggregator.config import AggregatorConfig, read_toml
from aggregator.history import History
from aggregator.records import Records
from aggregator.service import AggregatorService, Observer
from broker.blobs import BlobStore, open_blobs
from broker.cache import SMALL, CachedBlobs
from broker.transport import Transport, open_transport
from fledge.init_run import load_genesis, load_run
from fledge.keyfiles import read_identity
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.limits import STORED_RECORD
from protocol.messages import Named
from protocol.registry import Registry, open_registry
from worker.config import load_trainer, read_config, read_keys, read_limited
from worker.filters import build
from worker.service import Observer as WorkerObserver
from worker.service import WorkerEvent, WorkerService, WorkerSettings

_JOIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """Who the aggregator is and where it works: `aggregator.toml`, its keys and the signed registry."""

    config: AggregatorConfig
    base: Path
    identity: Identity
    registry_record: bytes
    registry: Registry
    root: bytes

    def state(self, run: str) -> Path:
        """Where the aggregator keeps what it knows of a run."""
        return self.base / self.config.state / run


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an aggregator has kept of a run: its journal, the store, and who may read what."""

    history: History
    records: Records
    registry: Registry


def read_centre(path: Path) -> Centre:
    """Read `aggregator.toml` and what it names; FLEDGE_BROKER and FLEDGE_STORE win over the file.

    Raises:
        ConfigError: a file is missing, readable by others, or of another role.
        WireError: the registry is not signed by the federation's root.
    """
    found = read_toml(path, AggregatorConfig)
    given = {key: os.environ.get(f"FLEDGE_{key.upper()}", "") for key in ("broker", "store")}
    config = found.model_copy(update={key: value for key, value in given.items() if value})
    base = path.parent
    identity = read_identity(base / config.keys)
    if identity.role != Role.AGGREGATOR:
        raise ConfigError(f"{base / config.keys} are keys of the role {identity.role.value}, not of an aggregator")
    try:
        with (base / config.registry).open("rb") as file:
            record = file.read(STORED_RECORD + 1)
    except OSError as error:
        raise ConfigError(f"{base / config.registry}: {error.strerror or error}; it is the signed registry") from error
    root = bytes.fromhex(config.root)
    return Centre(
        config=config,
        base=base,
        identity=identity,
        registry_record=record,
        registry=open_registry(record, root, config.federation),
        root=root,
    )


@contextmanager
def open_aggregator(config: Path, run: Path, *, observer: Observer | None = None) -> Iterator[AggregatorService]:
    """Build an aggregator for one run; it is not started yet, and stopped and taken apart at the end.

    Args:
        config: the path of `aggregator.toml`.
        run: the directory that `fledge init-run` made.

    Raises:
        ConfigError: a file is missing or wrong.
        FledgeError: the run cannot be opened, or whatever ended the service.
    """
    centre = read_centre(config)
    rules = load_run(run)
    with connected(centre.config.broker, centre.config.store, "aggregator") as (transport, store):
        service = AggregatorService(
            rules,
            federation=centre.config.federation,
            identity=centre.identity,
            registry_record=centre.registry_record,
            root=centre.root,
            transport=transport,
            store=store,
            state=centre.state(rules.name),
            genesis=load_genesis(run),
            cache_bytes=centre.config.cache_mb * 1024**2,
            observer=observer or _nobody,
        )
        with _taken_apart(service):
            yield service


@contextmanager
def open_worker(config: Path, *, on_event: WorkerObserver | None = None) -> Iterator[WorkerService]:
    """Build the worker that `worker.toml` describes; it is not started yet, and stopped and taken apart at the end.

    Raises:
        ConfigError: a file is missing or wrong.
        FledgeError: the state directory cannot be used, or whatever ended the worker.
    """
    settings, base = read_config(config), config.parent
    identity = read_keys(base / settings.keys, settings.site)
    state = base / settings.state
    with connected(settings.broker, settings.store, identity.name) as (transport, store):
        if settings.cache_mb and urlsplit(settings.store).scheme in ("s3", "s3s"):
            store = CachedBlobs(store, state / "cache", settings.cache_mb * 1024**2, small=SMALL)
        service = WorkerService(
            WorkerSettings(
                federation=settings.federation,
                identity=identity,
                registry_record=read_limited(base / settings.registry, STORED_RECORD),
                root=bytes.fromhex(settings.root),
                trainer=load_trainer(settings.trainer, settings.options, base),
                filters=build([Named(name=each.name, parameters=each.parameters) for each in settings.filters]),
                exclude=settings.exclude,
                spool_quota=settings.spool_mb * 1024**2,
                heartbeat=settings.heartbeat,
            ),
            transport=transport,
            store=store,
            state=state,
            on_event=on_event or _nobody_watches,
        )
        with _taken_apart(service):
            yield service


@contextmanager
def _taken_apart(service: AggregatorService | WorkerService) -> Iterator[None]:
    try:
        yield
    finally:
        service.stop()
    service.join(_JOIN_S)


@contextmanager
def connected(broker: str, store: str, name: str) -> Iterator[tuple[Transport, BlobStore]]:
    """Open a transport and a store by URL and close them at the end."""
    with ExitStack() as stack:
        blobs = open_blobs(store)
        stack.callback(blobs.close)
        transport = open_transport(broker, name=name)
        stack.callback(transport.close)
        yield transport, blobs


@contextmanager
def open_kept(centre: Centre, run: str) -> Iterator[Kept]:
    """Open what the aggregator has kept of a run, beside the aggregator if that is running.

    Raises:
        StateError: this aggregator knows no such run.
    """
    with ExitStack() as stack:
        history = History.open(centre.state(run) / "aggregator.db")
        stack.callback(history.close)
        store = open_blobs(centre.config.store)
        stack.callback(store.close)
        pool = stack.enter_context(ThreadPoolExecutor(4, thread_name_prefix="history"))
        newest = history.registry_record()
        registry = open_registry(newest, centre.root, centre.config.federation) if newest else centre.registry
        records = Records(centre.config.federation, run, centre.identity, store, pool)
        yield Kept(history=history, records=records, registry=registry)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `stop` once, on a thread of its own; a second signal kills."""
    before: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        # Stopping takes locks that the interrupted main thread may hold.
        threading.Thread(target=stop, name="stop", daemon=True).start()
        for taken in before:
            signal.signal(taken, signal.SIG_DFL)

    for each in (signal.SIGTERM, signal.SIGINT):
        before[each] = signal.signal(each, handle)
    try:
        yield
    finally:
        for taken, earlier in before.items():
            signal.signal(taken, earlier)


def _nobody(event: str, fields: object) -> None:
    """The observer of an aggregator that nobody watches."""


def _nobody_watches(event: WorkerEvent) -> None:
    """The observer of a worker that nobody watches."""
