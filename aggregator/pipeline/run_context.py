"""What the shell keeps of one run beside the rules: its settings, its newest records, and its threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from aggregator.config import RunConfig
from aggregator.domain.events import CommandArrived
from aggregator.domain.state import RunRules
from aggregator.journal.history import History
from aggregator.pipeline.genesis import first_body, rules_of
from aggregator.pipeline.jobs import RunJobs
from aggregator.pipeline.production import Inputs, Production
from aggregator.pipeline.records import Records, record_digest
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode
from aggregator.strategy.plan import MergePlan
from broker.blobs.base import BlobStore
from protocol.errors import ConfigError
from protocol.messages import Measurement
from protocol.registry import Registry
from protocol.spec import ModelSpec


@dataclass(slots=True, kw_only=True)
class RunContext:
    """One run being served."""

    config: RunConfig
    rules: RunRules
    spec: ModelSpec
    records: Records
    work: RunJobs
    record: bytes
    """Of the newest version."""
    states: Mapping[str, bytes]
    """The signed records of its own streams, by name: kept at hand, since every merge begins with them."""
    spec_record: bytes
    code_record: bytes

    def inputs(self, plan: MergePlan, history: History, registry: Registry) -> Inputs:
        """What a merge reads, from the database's own thread."""
        return Inputs(
            parent=self.record,
            states=self.states,
            envelopes=[history.envelope(member.id) for member in plan.members],
            registry=registry,
            body=first_body(self.config, self.rules, record_digest(self.spec_record), registry),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSource:
    """One version of a run, as the journal's own thread found it."""

    serving: RunContext
    version: int
    record: bytes
    states: dict[str, bytes]
    sites: tuple[str, ...] = ()
    """Whose updates are in it."""
    measurements: tuple[Measurement, ...] = ()


class RunExecutors(Protocol):
    """The executors that a run's slow work is done on."""

    io: ThreadPoolExecutor
    """Fetches and puts chunks."""
    cipher: ThreadPoolExecutor
    """Decrypts and encrypts streams beside each other."""


class RunContexts:
    """Opens what is needed to serve a run that the journal holds."""

    def __init__(
        self,
        history: History,
        records_of: Callable[[str], Records],
        store: BlobStore,
        executors: RunExecutors,
        registry: Callable[[], Registry],
        strategies: StrategyCode = NO_CODE,
    ) -> None:
        """`registry` gives the one in force; `records_of` the records of a run by its name."""
        self._history = history
        self._records_of = records_of
        self._store = store
        self._executors = executors
        self._registry = registry
        self._strategies = strategies
        self._specs: WeakValueDictionary[bytes, ModelSpec] = WeakValueDictionary()

    def source(self, serving: RunContext, command: CommandArrived, version: int | None) -> VersionSource:
        """The version that a command is about; without a number the newest (of a clone: version 0).

        Raises:
            StateError: there is no such version.
        """
        run = self._history.run(serving.config.name)
        if version is None:
            version = 0 if command.command == "run.clone" else run.newest()
        return VersionSource(
            serving=serving,
            version=version,
            record=run.version_record(version),
            states=run.state_records(version),
            sites=run.sites(version),
            measurements=run.measurements(version),
        )

    def _spec(self, raw: bytes) -> ModelSpec:
        """Runs of one model share its specification, which may take tens of MiB."""
        digest = hashlib.sha256(raw).digest()
        spec = self._specs.get(digest)
        if spec is None:
            spec = self._specs[digest] = ModelSpec.from_bytes(raw)
        return spec

    def open(self, name: str, rules: RunRules | None = None) -> RunContext:
        """Begin to serve a run; `rules` are its own, where they were made already.

        Raises:
            ConfigError: its strategy is unknown here, or its code no longer allowed.
            StateError: its strategy's code is not here any more.
        """
        history = self._history.run(name)
        kept, records = history.record(), self._records_of(name)
        config = RunConfig.model_validate_json(kept.config)
        spec = self._spec(kept.spec)
        try:
            rules = rules or rules_of(config, spec, kept.bundle, self._strategies)
        except ConfigError as error:
            raise ConfigError(f"run {name} cannot be opened: {error}") from error
        production = Production(records, spec, rules.strategy, self._executors.cipher, average=config.release_decay > 0)
        return RunContext(
            config=config,
            rules=rules,
            spec=spec,
            records=records,
            work=RunJobs(records, spec, production, self._store, self._executors.io, self._registry),
            record=history.version_record(history.newest()),
            states=history.state_records(history.newest()),
            spec_record=kept.spec_record,
            code_record=kept.code_record,
        )
