"""Opening a run: the registry, version 0 the first time, and the rules' fixed part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import nacl.utils
import structlog

from aggregator.config import RunConfig
from aggregator.journal import Journal
from aggregator.records import Records, version_body
from aggregator.snapshot import RunRules
from aggregator.strategies import Strategy, strategy
from broker.streams import ChunkUploads
from protocol import topology
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.messages import Kind, Version
from protocol.registry import Registry, open_registry
from protocol.spec import ModelSpec

log = structlog.get_logger("aggregator")


@dataclass(frozen=True, slots=True)
class Genesis:
    """Version 0: the model's specification and a fresh iterator over its payload's records."""

    spec: ModelSpec
    payload: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """What a service needs to know of its run."""

    spec: ModelSpec
    strategy: Strategy
    registry: Registry
    registry_record: bytes
    rules: RunRules


def open_run(
    config: RunConfig, journal: Journal, records: Records, registry_record: bytes, root: bytes, genesis: Genesis | None
) -> OpenedRun:
    """Bring journal and store to the point where the run can go on.

    Raises:
        ConfigError: there is no version 0 yet and no genesis, or the strategy is unknown.
        WireError: the registry is not signed by the root, or the store's records are not ours.
    """
    registry = open_registry(registry_record, root, records.federation)
    stored = journal.registry_record()
    if stored is not None and (newer := open_registry(stored, root, records.federation)).version > registry.version:
        # A file somebody forgot to replace must not bring back whom a newer registry has revoked.
        log.warning("registry.older_given", given=registry.version, in_force=newer.version)
        registry_record, registry = stored, newer
    journal.store_registry(registry.version, registry_record)
    records.put_record(registry_record)
    chosen = strategy(config.strategy.name, **config.strategy.parameters)
    if journal.empty:
        if genesis is None:
            raise ConfigError(f"run {config.name} has no version 0 yet; make one with `fledge init-run`")
        _begin(config, chosen, journal, records, registry, genesis)
    spec = records.read_spec(journal.spec_record(), registry)
    return OpenedRun(
        spec=spec,
        strategy=chosen,
        registry=registry,
        registry_record=registry_record,
        rules=RunRules(
            run=config.name,
            spec=spec.digest,
            update_length=spec.update_length,
            names=spec.names,
            strategy=chosen,
            parameters=config.strategy.parameters,
            stopping=config.stop.rules(),
            min_sites=config.min_sites,
            max_wait=config.max_wait,
            grace=config.grace,
            heartbeat=config.heartbeat,
            release_decay=config.release_decay,
        ),
    )


def _begin(
    config: RunConfig, chosen: Strategy, journal: Journal, records: Records, registry: Registry, genesis: Genesis
) -> None:
    """Publish version 0 like any version: chunks and records first, then the one transaction."""
    spec_record = records.write_spec(genesis.spec, registry, nacl.utils.random(16))
    spec_digest = records.put_record(spec_record)
    sealer = records.sealer(Kind.VERSION, nacl.utils.random(16), genesis.spec, genesis.spec.model_length, version=0)
    uploads: ChunkUploads = records.output(topology.model_chunk)
    writer = sealer.writer(uploads.emit)
    for record in genesis.payload():
        writer.write(record)
    manifest = writer.finish()
    uploads.finish()
    body = Version(
        parent=None,
        spec_record=spec_digest,
        updates_per_base=chosen.updates_per_base,
        max_staleness=chosen.max_staleness(len(registry.members(Role.SITE)) or 1),
        evaluate=config.evaluate,
        task=config.task,
        registry=registry.version,
    )
    record = sealer.finish(version_body(body), records.entitled(registry), manifest)
    records.put_record(record)
    journal.begin(config.name, manifest.digest, record, spec_record, registry.version)
