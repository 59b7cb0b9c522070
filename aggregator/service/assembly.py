"""Where an aggregator's parts are made and put together; everything else receives what it needs."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from aggregator.config import RunConfig, ending, kept
from aggregator.domain import events
from aggregator.domain.events import Event
from aggregator.intake import Intake
from aggregator.journal.journal import Journal
from aggregator.operators.preparation import Preparation
from aggregator.operators.responder import HubActions, Responder
from aggregator.operators.view import QueryContext
from aggregator.pipeline.envelope_cache import EnvelopeCache
from aggregator.pipeline.genesis import registry_in_force, take_over
from aggregator.pipeline.run_context import RunContexts
from aggregator.rules.federation import AggregatorRules
from aggregator.service.executors import Executors
from aggregator.service.head_writer import HeadWriter
from aggregator.service.health import HealthWriter
from aggregator.service.receipts import ReceiptSealer
from aggregator.service.registry_updates import RegistryUpdates
from aggregator.service.service import DATABASE, AggregatorGround, AggregatorParts, AggregatorService, new_id
from aggregator.service.settings import AggregatorSettings, FirstRun
from broker.blobs.base import BlobStore
from broker.blobs.cache import SMALL, CachedBlobs
from broker.runtime.actor import Mailbox
from broker.transport.base import Transport, Unacked
from protocol import topology
from protocol.errors import ConfigError
from protocol.messages import RunState
from protocol.registry import open_registry


def assemble_aggregator(
    settings: AggregatorSettings,
    *,
    transport: Transport,
    store: BlobStore,
    state: Path | None,
    first: FirstRun | None = None,
) -> AggregatorService:
    """An aggregator that is not started yet; transport and store stay the caller's to close.

    `state` None keeps the database in memory.

    Raises:
        ConfigError, StateError, WireError, StoreError: a run cannot be opened; nothing is left open then.
    """
    with ExitStack() as undo:
        service = _assembled(_ground(settings, transport, store, state, undo), state, first, undo)
        undo.pop_all()  # from here on they are the service's to close
    return service


def _assembled(
    ground: AggregatorGround, state: Path | None, first: FirstRun | None, undo: ExitStack
) -> AggregatorService:
    settings, transport, store = ground.settings, ground.transport, ground.store
    journal, intake, executors = ground.journal, ground.intake, ground.executors
    if first is not None:
        _begin(ground, first)
    contexts = RunContexts(journal, ground.records_of, ground.cached, executors, ground.in_force, settings.strategies)
    serving = {name: contexts.open(name) for name in journal.names()}
    fixed = {name: context.rules for name, context in serving.items()}
    rules = AggregatorRules(fixed, journal.load(ground.registry), new_id=new_id, now=time.monotonic())
    intake.registry = rules.registry
    heads = HeadWriter(store, settings.federation, partial(transport.publish, topology.GLOBAL, ""), ground.record)
    undo.callback(partial(heads.close, put=False))
    registries = _registry_updates(ground, rules)
    preparation = Preparation(ground.records_of, store, ground.in_force, settings.strategies)
    queries = QueryContext(
        history=journal,
        rules=rules,
        serving=serving,
        card=preparation.card,
        registry=ground.registry,
        depths=settings.access.depths,
    )
    return AggregatorService(
        AggregatorParts(
            ground=ground,
            rules=rules,
            contexts=contexts,
            serving=serving,
            registries=registries,
            responder=_responder(ground, queries, heads, registries),
            preparation=preparation,
            heads=heads,
            health=None if state is None else HealthWriter(transport, state),
        )
    )


def _ground(
    settings: AggregatorSettings, transport: Transport, store: BlobStore, state: Path | None, undo: ExitStack
) -> AggregatorGround:
    mailbox, stopping, envelopes = Mailbox[Event](), threading.Event(), EnvelopeCache()
    cached = store
    if state is not None:
        cached = CachedBlobs(store, state / "cache", settings.cache_bytes, keep_puts=True, small=SMALL)
    given = open_registry(settings.registry_record, settings.root, settings.federation)
    intake = Intake(settings.federation, settings.identity, given, envelopes)
    sealer = ReceiptSealer(settings.federation, settings.identity, intake)
    journal = Journal(None if state is None else state / DATABASE, sealer)
    undo.callback(journal.close)
    registry, record = registry_in_force(journal, settings.registry_record, settings.root, settings.federation)
    intake.registry = registry
    executors = Executors(mailbox.put, stopping)
    undo.callback(executors.close)
    return AggregatorGround(
        settings=settings,
        transport=transport,
        store=store,
        cached=cached,
        mailbox=mailbox,
        stopping=stopping,
        executors=executors,
        envelopes=envelopes,
        intake=intake,
        journal=journal,
        registry=registry,
        record=record,
    )


def _registry_updates(ground: AggregatorGround, rules: AggregatorRules) -> RegistryUpdates:
    return RegistryUpdates(
        federation=ground.settings.federation,
        root=ground.settings.root,
        transport=ground.transport,
        intake=ground.intake,
        rules=rules,
        records_of=ground.records_of,
        forget=ground.envelopes.clear,
        tell=ground.mailbox.put,
    )


def _responder(
    ground: AggregatorGround, queries: QueryContext, heads: HeadWriter, registries: RegistryUpdates
) -> Responder:
    settings = ground.settings
    actions = HubActions(
        head=lambda: heads.newest,
        again=partial(_again, ground),
        tell=ground.mailbox.put,
        put_registry=registries.update,
        later=ground.executors.io.submit,
    )
    return Responder(
        settings.federation,
        settings.identity,
        ground.transport,
        queries=queries,
        access=settings.access,
        actions=actions,
    )


def _again(ground: AggregatorGround, queue: str, delivery: Unacked, raw: bytes) -> events.FromSite | events.SiteSeen:
    """Hand what was refused from a site's queue to the rules once more.

    Raises:
        ConfigError: it did not come from a site.
    """
    site = queue.partition(".")[2]
    if queue not in (topology.event_queue(site), topology.in_queue(site)):
        raise ConfigError("orders_are_given_anew")
    read: events.FromSite | events.SiteSeen = (
        ground.intake.update(site, delivery, raw)
        if queue == topology.in_queue(site)
        else ground.intake.live(site, delivery, raw)[0]
    )
    if isinstance(read, events.DeliveryRefused):
        read = replace(read, kept=True)
    ground.mailbox.put(read)
    return read


def _begin(ground: AggregatorGround, first: FirstRun) -> None:
    """Take over a run that lies beside the aggregator, or its settings as they are now."""
    config, journal = first.config, ground.journal
    if config.name in journal.names():
        record = journal.run(config.name).record()
        if not config.stop.named:  # it keeps the end that it has, or none
            begun = RunConfig.model_validate_json(record.config).stop.model_dump(exclude={"metric", "direction"})
            config = config.model_copy(update={"stop": config.stop.model_copy(update=begun)})
        settings, strategies = kept(config), ground.settings.strategies
        strategies.keep(config.strategy.name, first.code)
        # Before it is written: what cannot be made would be in the way of every later start, whatever it is given.
        strategies.strategy(config.strategy.name, config.strategy.parameters, record.bundle)
        journal.set_config(config.name, settings)
        return
    if first.genesis is None:
        raise ConfigError(f"run {config.name} has no version 0 yet; make one with `fledge init-run`")
    records, strategies = ground.records_of(config.name), ground.settings.strategies
    new = take_over(ending(config), first.genesis, records, ground.registry, code=first.code, strategies=strategies)
    journal.begin(replace(new, state=RunState.RUNNING))
