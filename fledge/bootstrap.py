"""The composition root: from configuration files to services. Only here do aggregator and worker meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nacl.utils

from aggregator.config import AggregatorConfig
from aggregator.journal.history import History
from aggregator.journal.run_history import RunHistory
from aggregator.pipeline.records import Records
from aggregator.pipeline.strategy_code import StrategyCode
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.event_log import Observer
from aggregator.service.service import DATABASE, AggregatorService
from aggregator.service.settings import AggregatorSettings, FirstRun
from broker.blobs.base import BlobStore
from broker.blobs.cache import CachedBlobs
from broker.blobs.monitored import MonitoredBlobs
from broker.blobs.s3.presigned import Ask
from broker.net.urls import scheme_of
from broker.runtime.file_digests import FileDigests
from broker.runtime.settings import given_urls, read_toml
from deploy.keyfiles import read_bounded, read_identity
from fledge.connections import CREDENTIALS_TOML, admin_access_of, broker_of, days_left, granted_store, store_of
from fledge.runs.code_archive import load_code
from fledge.runs.init_run import load_genesis, load_run
from protocol.codec import Value
from protocol.envelope import NO_RUN
from protocol.errors import ConfigError, StateError
from protocol.keys import Identity, Role
from protocol.limits import STORED_RECORD
from protocol.messages import Grant, Request
from protocol.registry import Registry, open_registry
from worker.api.filters import build
from worker.api.processes import start_by_forking
from worker.api.trainer import Trainer
from worker.config import WorkerConfig, load_trainer, read_config, site_policy, trainer_digest
from worker.inspection.inspector import Inspector
from worker.inspection.settings import write_settings
from worker.policy import SitePolicy
from worker.service.assembly import assemble_worker
from worker.service.service import WorkerService
from worker.service.settings import WorkerSettings
from worker.service.status import Observer as WorkerObserver
from worker.service.status import WorkerEvent

_JOIN_S = 30.0
LOG = "worker.log"
STRATEGIES = "strategies"
"""In an aggregator's state: the code of runs that bring their strategy."""
CACHE = "cache"
"""In a worker's state: published models, encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorFiles:
    """Who the aggregator is and where it works: `aggregator.toml`, its keys and the signed registry."""

    config: AggregatorConfig
    base: Path
    identity: Identity
    registry_record: bytes
    registry: Registry
    root: bytes

    @property
    def state(self) -> Path:
        """Where the aggregator keeps what it knows."""
        return self.base / self.config.state

    @property
    def strategies(self) -> StrategyCode:
        """The strategies that runs have brought, as far as they are allowed."""
        return StrategyCode(self.state / STRATEGIES, self.config.allow_strategy_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorState:
    """What an aggregator has kept: its journal, the store, who may read what; and one run of the journal."""

    history: History
    run: RunHistory
    records: Records
    registry: Registry
    strategies: StrategyCode


def read_centre(path: Path) -> AggregatorFiles:
    """Read `aggregator.toml` and what it names; FLEDGE_BROKER and FLEDGE_STORE win over the file.

    Raises:
        ConfigError: a file is missing, readable by others, or of another role.
        WireError: the registry is not signed by the federation's root.
    """
    config, base = read_toml(path, AggregatorConfig, given_urls()), path.parent
    identity = read_identity(base / config.keys)
    if identity.role != Role.AGGREGATOR:
        raise ConfigError(f"{base / config.keys} are keys of the role {identity.role.value}, not of an aggregator")
    record = read_bounded(base / config.registry, STORED_RECORD, "the signed registry")
    root = bytes.fromhex(config.root)
    return AggregatorFiles(
        config=config,
        base=base,
        identity=identity,
        registry_record=record,
        registry=open_registry(record, root, config.federation),
        root=root,
    )


@contextmanager
def open_aggregator(
    config: Path, run: Path | None = None, *, observer: Observer | None = None
) -> Iterator[AggregatorService]:
    """Build an aggregator for a federation's runs; it is not started yet, and stopped and taken apart at the end.

    Args:
        config: the path of `aggregator.toml`.
        run: a directory that `fledge init-run` made: a run to serve besides those that operators create.

    Raises:
        ConfigError: a file is missing or wrong.
        FledgeError: the run cannot be opened, or whatever ended the service.
    """
    centre = read_centre(config)
    _must_not_be_older(centre.state)
    line = centre.config
    with broker_of(line, centre.base, "aggregator") as transport, store_of(line, centre.base) as store:
        watched = MonitoredBlobs(store)
        settings = AggregatorSettings(
            federation=centre.config.federation,
            identity=centre.identity,
            registry_record=centre.registry_record,
            root=centre.root,
            access=admin_access_of(line, centre.base),
            cache_bytes=centre.config.cache_mb * 1024**2,
            observer=observer or _nobody,
            strategies=centre.strategies,
        )
        first = None
        if run is not None:
            first = FirstRun(config=load_run(run), genesis=load_genesis(run), code=load_code(run))
        service = assemble_aggregator(settings, transport=transport, store=watched, state=centre.state, first=first)
        with _taken_apart(service):
            if service.pulse is not None:
                watched.tell(service.pulse.health.store)
            yield service


def _must_not_be_older(state: Path) -> None:
    """An aggregator that does not know its runs would begin them again."""
    if not (state / DATABASE).exists() and (older := sorted(state.glob(f"*/{DATABASE}"))):
        raise ConfigError(
            f"{older[0]} was kept by an older fledge, which had a folder for each run; "
            "end the run with that one, then name another `state` in aggregator.toml"
        )


@contextmanager
def open_worker(
    config: Path,
    *,
    on_event: WorkerObserver | None = None,
    trainer: Trainer | None = None,
    seed: bytes | None = None,
) -> Iterator[WorkerService]:
    """Build the worker that `worker.toml` describes; it is not started yet, and stopped and taken apart at the end.

    Args:
        trainer: one that is made already, in the place of what the file names.
        seed: what all trainings' seeds follow from; by default nobody knows it.

    Raises:
        ConfigError: a file is missing or wrong.
        FledgeError: the state directory cannot be used, or whatever ended the worker.
    """
    start_by_forking()
    read = FileDigests(config)
    settings, base = read_config(config), config.parent
    read.add(base / settings.policy, base / CREDENTIALS_TOML)
    identity = read_identity(base / settings.keys)
    if settings.site not in (None, identity.name):
        raise ConfigError(
            f"{base / settings.keys} holds the keys of {identity.name}, the configuration is for {settings.site}"
        )
    state = base / settings.state
    policy = site_policy(settings, base)
    policy.check_filters(settings.chain)
    if policy.code is not None and settings.trainer is not None:
        policy.check_code(trainer_digest(settings.trainer, base))
    line = settings
    with ExitStack() as stack:
        transport = stack.enter_context(broker_of(line, base, identity.name))
        if line.access == "presigned":
            # The store asks for URLs by way of the service that is given the store.
            store: BlobStore = granted_store(line, base, identity.name, _ask_by(lambda: service))
            stack.callback(store.close)
        else:
            store = stack.enter_context(store_of(line, base))
        store = watched = MonitoredBlobs(store)
        if settings.cache_mb and scheme_of(settings.store) not in ("memory", "file"):
            # Everything on the disk, small things too: `fledge infer` reads it without the hub.
            store = CachedBlobs(store, state / CACHE, settings.cache_mb * 1024**2)
        made = trainer or (load_trainer(settings.trainer, settings.options, base) if settings.trainer else None)
        service = assemble_worker(
            replace(_worker_settings(config, settings, identity, policy, made, seed), changed=read.changed),
            transport=transport,
            store=store,
            state=state,
            on_event=on_event or _nobody_watches,
        )
        with _taken_apart(service):
            watched.tell(service.health.store)
            write_settings(state, settings)
            yield service


def _worker_settings(
    config: Path,
    settings: WorkerConfig,
    identity: Identity,
    policy: SitePolicy,
    trainer: Trainer | None,
    seed: bytes | None,
) -> WorkerSettings:
    base, state, statistics = config.parent, config.parent / settings.state, policy.statistics
    return WorkerSettings(
        federation=settings.federation,
        identity=identity,
        registry_record=read_bounded(base / settings.registry, STORED_RECORD, "the signed registry"),
        root=bytes.fromhex(settings.root),
        trainer=trainer,
        options=settings.options_of,
        filters=build(settings.chain),
        exclude=settings.exclude,
        spool_quota=settings.spool_mb * 1024**2,
        heartbeat=settings.heartbeat,
        policy=policy,
        inspection=Inspector(state, log_file=state / LOG, environment=os.environ, statistics=statistics),
        certificate_days=partial(days_left, settings, base),
        checks=partial(_checks, config),
        seed=seed or nacl.utils.random(32),
    )


def _ask_by(service: Callable[[], WorkerService]) -> Ask:
    """Ask for URLs by way of a service that is made after the store it is given."""

    def ask(request: Request) -> Grant:
        return service().grants.ask(request)

    return ask


def _checks(config: Path) -> Mapping[str, Value]:
    from fledge.doctor.examine import examine
    from fledge.doctor.place import read_place

    return examine(read_place(config)).shareable()


@contextmanager
def _taken_apart(service: AggregatorService | WorkerService) -> Iterator[None]:
    try:
        yield
    finally:
        service.stop()
    service.join(_JOIN_S)


@contextmanager
def open_kept(centre: AggregatorFiles, run: str | None = None) -> Iterator[AggregatorState]:
    """Open what the aggregator has kept, beside the aggregator if that is running.

    Raises:
        StateError: this aggregator knows no such run, or has never run.
    """
    _must_not_be_older(centre.state)
    if not (centre.state / DATABASE).exists():
        raise StateError(
            f"{centre.state} holds no journal: the aggregator has never been started here; start it "
            "(`fledge aggregator`), or name with --config the aggregator.toml of one that was"
        )
    with ExitStack() as stack:
        history = History.open(centre.state / DATABASE)
        stack.callback(history.close)
        if run is not None:
            history.run(run).record()
        store = stack.enter_context(store_of(centre.config, centre.base))
        pool = stack.enter_context(ThreadPoolExecutor(4, thread_name_prefix="history"))
        newest = history.registry_record()
        registry = open_registry(newest, centre.root, centre.config.federation) if newest else centre.registry
        records = Records(centre.config.federation, run or NO_RUN, centre.identity, store, pool)
        yield AggregatorState(
            history=history,
            run=history.run(run or NO_RUN),
            records=records,
            registry=registry,
            strategies=centre.strategies,
        )


def _nobody(event: str, fields: object) -> None:
    """The observer of an aggregator that is not watched."""


def _nobody_watches(event: WorkerEvent) -> None:
    """The observer of a worker that is not watched."""
