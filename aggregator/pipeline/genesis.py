"""Taking over a run: its version 0 and its records into the store, and what is fixed about it for the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import nacl.utils
import numpy as np
import structlog

from aggregator.config import RunConfig, kept
from aggregator.domain.state import NewRun, RunRules
from aggregator.journal.journal import Journal
from aggregator.pipeline.records import Records
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode
from protocol.cipher import Octets
from protocol.codec import encode
from protocol.errors import Tampered
from protocol.keys import Role
from protocol.messages import Kind, Version
from protocol.registry import Registry, open_registry
from protocol.spec import ModelSpec

log = structlog.get_logger("aggregator")


@dataclass(frozen=True, slots=True)
class Genesis:
    """Version 0: the model's specification and a fresh iterator over its payload's records."""

    spec: ModelSpec
    payload: Callable[[], Iterator[Octets]]


def registry_in_force(journal: Journal, given: bytes, root: bytes, federation: str) -> tuple[Registry, bytes]:
    """The newer of the registry that was given and the one that was in force last, with its record.

    Raises:
        WireError: one is not signed by the root.
    """
    registry = open_registry(given, root, federation)
    stored = journal.registry_record()
    if stored is not None and (newer := open_registry(stored, root, federation)).version > registry.version:
        # A file that was not replaced must not bring back whom a newer registry has revoked.
        log.warning("registry.older_given", given=registry.version, in_force=newer.version)
        return newer, stored
    journal.store_registry(registry.version, given)
    return registry, given


def rules_of(config: RunConfig, spec: ModelSpec, bundle: bytes | None, strategies: StrategyCode = NO_CODE) -> RunRules:
    """What is fixed about a run while the aggregator runs.

    Args:
        bundle: SHA-256 of the run's code.
        strategies: makes the run's strategy, of its own code if that is allowed.

    Raises:
        ConfigError: there is no such strategy, it does not take these parameters, or its code is not allowed.
        StateError: its code is not here.
    """
    return RunRules(
        run=config.name,
        spec=spec.digest,
        update_length=spec.update_length,
        names=spec.names,
        strategy=strategies.strategy(config.strategy.name, config.strategy.parameters, bundle),
        parameters=config.strategy.parameters,
        stopping=config.stop.rules(),
        min_sites=config.min_sites,
        max_wait=config.max_wait,
        grace=config.grace,
        heartbeat=config.heartbeat,
        release_decay=config.release_decay,
        bundle=bundle,
    )


def first_body(config: RunConfig, rules: RunRules, spec_record: bytes, registry: Registry) -> Version:
    """What version 0's record says, and every later one's besides its `parent`; `spec_record` is a digest."""
    return Version(
        parent=None,
        spec_record=spec_record,
        updates_per_base=rules.strategy.updates_per_base,
        max_staleness=rules.strategy.max_staleness(len(registry.members(Role.SITE)) or 1),
        evaluate=config.evaluate,
        task=config.task,
        registry=registry.version,
        bundle=rules.bundle,
    )


def take_over(
    config: RunConfig,
    genesis: Genesis,
    records: Records,
    registry: Registry,
    *,
    code: bytes = b"",
    strategies: StrategyCode = NO_CODE,
) -> NewRun:
    """Publish version 0 like any version: chunks and records first, so that one transaction can make it count.

    Args:
        code: the zip archive that sites train with; empty: code of their own.
        strategies: keeps the run's strategy, if it is in its code, and makes it.

    Raises:
        ConfigError: there is no such strategy, it does not take these parameters, its code is not allowed here, or a
            setting cannot be kept.
        Tampered: version 0 is not what its specification says, or not finite.
        StoreError: the store cannot be written.
    """
    bundle = hashlib.sha256(code).digest() if code else None
    settings = kept(config)
    strategies.keep(config.strategy.name, code)
    rules = rules_of(config, genesis.spec, bundle, strategies)
    spec_record = records.write_spec(genesis.spec, registry, nacl.utils.random(16))
    spec_digest = records.put_record(spec_record)
    code_record = records.write_code(code, registry, nacl.utils.random(16)) if code else b""
    sealer = records.sealer(Kind.VERSION, nacl.utils.random(16), genesis.spec, genesis.spec.model_length, registry)
    manifest = records.upload(sealer, _sound(genesis.spec, genesis.payload()))
    body = first_body(config, rules, spec_digest, registry)
    record = sealer.finish(encode(body), records.entitled(registry), manifest)
    records.put_record(record)
    return NewRun(
        rules=rules,
        config=settings,
        digest=manifest.digest,
        record=record,
        spec=genesis.spec.to_bytes(),
        spec_record=spec_record,
        code_record=code_record,
        registry=registry.version,
    )


def _sound(spec: ModelSpec, payload: Iterable[Octets]) -> Iterator[Octets]:
    """The same records, once each was found to be what the specification says and finite."""
    position = 0
    for record in payload:
        inside = max(0, min(len(record), len(spec.header) - position))
        if record[:inside] != spec.header[position : position + inside]:
            raise Tampered("version 0 is not the model that its specification describes", "wrong_header")
        floats = max(inside, min(len(record), spec.update_length - position))
        if not np.isfinite(np.frombuffer(record, np.float32, (floats - inside) // 4, inside)).all():
            raise Tampered("version 0 holds values that are not finite", "not_finite")
        position += len(record)
        yield record
    if position != spec.model_length:
        raise Tampered("version 0 is shorter or longer than its specification says", "wrong_length")
