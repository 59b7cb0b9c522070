"""Where a worker's parts are made and put together; everything else receives what it needs."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

import nacl.utils
import structlog

from broker.blobs.base import BlobStore
from broker.runtime.actor import Mailbox
from broker.runtime.health import HEALTH, SITE_LONGEST_S, Health
from broker.transport.base import Transport
from protocol import topology
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.registry import Registry
from worker.domain.events import Event
from worker.domain.writes import NoteRegistry
from worker.intake import Reader, read_registry
from worker.journal.approvals import Approvals
from worker.journal.journal import Journal
from worker.journal.lock import hold
from worker.pipeline.code_loader import CodeLoader
from worker.pipeline.context import ReaderInForce, SiteContext
from worker.pipeline.fetcher import Fetcher
from worker.pipeline.training import Training, TrainingPlaces, TrainingTerms
from worker.pipeline.uploader import Throttle, Uploader
from worker.rules.membership import Membership
from worker.rules.worker import WorkerRules, WorkerTerms
from worker.service.code_deployer import CodeDeployer
from worker.service.command_handler import CommandHandler
from worker.service.grant_client import GrantClient
from worker.service.service import WorkerGround, WorkerParts, WorkerService
from worker.service.settings import WorkerSettings
from worker.service.status import Observer, StatusReporter, WorkerEvent
from worker.storage.code_store import CodeStore
from worker.storage.incidents import Incidents
from worker.storage.kept_versions import KeptVersions
from worker.storage.local_tensors import LocalTensors
from worker.storage.spool import Spool

CASES, ANSWERS, MODELS = "cases", "approvals", "models"
"""Directories below the state directory that people at the site look at and write to."""


def nobody(event: WorkerEvent) -> None:
    """The observer of a worker that nobody watches."""


def assemble_worker(
    settings: WorkerSettings,
    *,
    transport: Transport,
    store: BlobStore,
    state: Path,
    on_event: Observer = nobody,
    dice: random.Random | None = None,
) -> WorkerService:
    """A worker that takes up what an earlier process left in its state directory; it is not started yet.

    Transport and store stay the caller's to close. `on_event` may be called from several threads.

    Raises:
        ConfigError: the identity is not a site's.
        WireError: the registry is not signed by the federation's root.
        StateError: the state directory cannot be used, or another worker uses it.

        After any error nothing is left open, and the state directory is free again.
    """
    identity = settings.identity
    if identity.role != Role.SITE:
        raise ConfigError(f"{identity.name} is a key of the role {identity.role.value}; a worker needs a site's")
    topology.check_site(identity.name)
    with ExitStack() as undo:
        lock = hold(state)
        undo.callback(os.close, lock)
        ground = _ground(settings, store, state, lock, undo)
        service = _assembled(ground, transport, on_event, dice or random.Random(), undo)
        undo.pop_all()  # from here on they are the service's to close
    return service


def _assembled(
    ground: WorkerGround, transport: Transport, on_event: Observer, dice: random.Random, undo: ExitStack
) -> WorkerService:
    settings, state, store, context = ground.settings, ground.state, ground.store, ground.context
    policy, rules = settings.policy, _rules(ground, dice)
    status = StatusReporter(context, transport, on_event, settings.certificate_days, settings.changed)
    health = Health(state / HEALTH, SITE_LONGEST_S)
    deployer = CodeDeployer(ground.codes, store, policy, context)
    kbit = policy.bandwidth_kbit
    training = _training(ground, status)
    undo.callback(training.close)
    return WorkerService(
        WorkerParts(
            ground=ground,
            rules=rules,
            transport=transport,
            relay_dice=dice,
            fetcher=Fetcher(store, settings.root, time.time, context),
            training=training,
            uploader=Uploader(store, ground.spool, context, Throttle(None if kbit is None else kbit * 125.0)),
            approvals=Approvals(state / ANSWERS),
            grants=GrantClient(context, transport, health),
            deployer=deployer,
            commands=CommandHandler(context, policy, settings.inspection, deployer, checks=settings.checks),
            status=status,
            health=health,
        )
    )


def _ground(settings: WorkerSettings, store: BlobStore, state: Path, lock: int, undo: ExitStack) -> WorkerGround:
    site = settings.identity.name
    log = structlog.get_logger("worker").bind(site=site)
    journal, mailbox = Journal(state / "worker.db", site), Mailbox[Event]()
    undo.callback(journal.close)
    registry = _registry(journal, settings)
    reader = ReaderInForce(Reader(settings.identity, settings.federation, registry))
    return WorkerGround(
        settings=settings,
        state=state,
        store=store,
        lock=lock,
        mailbox=mailbox,
        journal=journal,
        reader=reader,
        context=SiteContext(site=site, reader=reader, tell=mailbox.put, log=log),
        spool=Spool(state / "spool", settings.spool_quota),
        codes=CodeStore(state / "code"),
    )


def _registry(journal: Journal, settings: WorkerSettings) -> Registry:
    """The newer of the kit's registry and the one that was noted last."""
    first = read_registry(settings.registry_record, settings.root, settings.federation)
    noted = journal.registry_record()
    if noted is not None:
        last = read_registry(noted, settings.root, settings.federation)
        if last.registry.version >= first.registry.version:
            return last.registry
    journal.commit([NoteRegistry(version=first.registry.version, digest=first.digest, record=first.record)])
    return first.registry


def _rules(ground: WorkerGround, dice: random.Random) -> WorkerRules:
    """The rules as the journal left them; what no row of it names is swept away."""
    settings, registry = ground.settings, ground.reader().registry
    snapshot = ground.journal.load()
    swept = ground.spool.sweep([name for update in snapshot.updates for name in update.chunks])
    swept += ground.codes.sweep(each.code for each in snapshot.deployments.values())
    ground.context.log.info("worker.opened", updates=len(snapshot.updates), leftovers=swept, registry=registry.version)
    return WorkerRules(
        snapshot,
        WorkerTerms(heartbeat=settings.heartbeat, policy=settings.policy, own_trainer=settings.trainer is not None),
        site=ground.context.site,
        new_id=lambda: nacl.utils.random(16),
        dice=dice,
        membership=Membership(settings.identity.public, registry),
    )


def _training(ground: WorkerGround, status: StatusReporter) -> Training:
    settings, state = ground.settings, ground.state
    terms = TrainingTerms(
        trainer=settings.trainer,
        deployed=CodeLoader(ground.codes, ground.reader, settings.policy, settings.options),
        filters=settings.filters,
        exclude=settings.exclude,
        seed=settings.seed,
        policy=settings.policy,
    )
    places = TrainingPlaces(
        store=ground.store,
        spool=ground.spool,
        own=LocalTensors(state / "own", settings.identity, settings.federation),
        cases=Incidents(state / CASES),
        kept=KeptVersions(state / MODELS),
    )
    return Training(terms, places, ground.context, status.progress)
