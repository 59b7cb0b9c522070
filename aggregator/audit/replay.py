"""Replay: rebuild versions from the journal, as they were, without a site, or with another strategy; and the audit.

A replay chains its own results from version 0, reads every delta from the store again, and compares each version's
plaintext digest with the journal's. It never decides again which updates were ready.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from aggregator.journal.history import History
from aggregator.journal.run_history import RunHistory
from aggregator.pipeline.merge import RELEASED
from aggregator.pipeline.production import Inputs, Production
from aggregator.pipeline.records import Records
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode
from aggregator.rules.planning import members
from aggregator.strategy.base import Strategy
from aggregator.strategy.plan import Member, MergePlan
from aggregator.strategy.staleness import weight_at
from aggregator.strategy.weighting import SiteStatistics
from broker.blobs.base import BlobStore, ObjectInfo
from broker.blobs.directory import FileBlobs
from protocol import limits, topology
from protocol.codec import decode
from protocol.envelope import raw_body
from protocol.errors import StateError
from protocol.keys import Identity
from protocol.messages import Kind, Version
from protocol.registry import Registry
from protocol.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One rebuilt version beside the one in the journal."""

    version: int
    digest: bytes
    stored: bytes

    @property
    def same(self) -> bool:
        """Whether the bytes are the same."""
        return self.digest == self.stored


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """How a replay differs from what happened; nothing by default."""

    without: Collection[str] = ()
    """Sites whose updates are left out."""
    strategy: Strategy | None = None
    """Another strategy: its rate and staleness policy replace the stored ones, example weights and clips stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is needed to rebuild a run's versions."""

    federation: str
    run: str
    identity: Identity
    registry: Registry
    history: History
    store: BlobStore
    strategies: StrategyCode = NO_CODE
    """Makes the strategies that runs bring in their code."""

    @property
    def _run(self) -> RunHistory:
        return self.history.run(self.run)

    def versions(self, upto: int | None = None, what_if: WhatIf | None = None) -> Iterator[Replayed]:
        """Rebuild version 1, 2, … in order; one at a time lies encrypted in a temporary directory.

        Raises:
            StateError: there is no such version, or the run's own strategy is not here any more.
            ConfigError: the run's own strategy is not allowed any more.
            StoreError: an update's chunk is gone (pruned).
            WireError: a record or blob is not what was signed.
        """
        for replayed, _, _ in self._walk(upto, what_if or WhatIf()):
            yield replayed

    def model(self, version: int, what_if: WhatIf, *, released: bool) -> Iterator[memoryview]:
        """Rebuild up to `version` and yield its plaintext payload (or the released average's), record by record.

        Raises:
            StateError: there is no such version, or it is version 0, which needs no rebuilding.
        """
        if version == 0:
            raise StateError("version 0 is what the run began with; export it without replaying")
        for replayed, records, inputs in self._walk(version, what_if):
            if replayed.version == version:
                yield from read_version(records, self.registry, inputs.parent, inputs.states, released=released)

    def _walk(self, upto: int | None, what_if: WhatIf) -> Iterator[tuple[Replayed, Records, Inputs]]:
        plans = self._run.plans()
        if upto is not None:
            if upto > len(plans):
                raise StateError(f"there is no version {upto}; the newest is {len(plans)}")
            plans = plans[:upto]
        with tempfile.TemporaryDirectory(prefix="fledge-replay-") as scratch, ThreadPoolExecutor(4) as io:
            cipher = ThreadPoolExecutor(3)
            over = _Overlay(FileBlobs(Path(scratch)), self.store)
            records = Records(self.federation, self.run, self.identity, over, io)
            try:
                yield from self._chain(plans, what_if, records, cipher, over)
            finally:
                cipher.shutdown(wait=True, cancel_futures=True)

    def _chain(
        self,
        plans: list[tuple[MergePlan, bytes]],
        what_if: WhatIf,
        records: Records,
        cipher: ThreadPoolExecutor,
        over: _Overlay,
    ) -> Iterator[tuple[Replayed, Records, Inputs]]:
        kept = self._run.record()
        spec, bundle = ModelSpec.from_bytes(kept.spec), kept.bundle
        parent, states, digest = self._run.version_record(0), dict[str, bytes](), b""
        opened = records.open(parent, self.registry, Kind.VERSION)
        body = decode(Version, raw_body(opened.verified, opened.key), limits.BODY)
        for plan, stored in plans:
            chosen = what_if.strategy or self.strategies.strategy(plan.strategy, plan.parameters, bundle)
            average = RELEASED in self._run.state_records(plan.version)
            changed = _changed(plan, what_if, chosen)
            if changed.members:
                inputs = Inputs(
                    parent=parent,
                    states=states,
                    envelopes=[self.history.envelope(member.id) for member in changed.members],
                    registry=self.registry,
                    body=body,
                )
                before = over.written()
                product = Production(records, spec, chosen, cipher, average=average).produce(changed, inputs)
                parent, states, digest = product.record, dict(product.states), product.digest
                over.drop(before)
            inputs = Inputs(parent=parent, states=states, envelopes=(), registry=self.registry, body=body)
            yield Replayed(version=plan.version, digest=digest, stored=stored), records, inputs


def read_version(
    records: Records, registry: Registry, record: bytes, states: Mapping[str, bytes], *, released: bool
) -> Iterator[memoryview]:
    """Plaintext records of a version's model: the raw one, or the released average where there is one."""
    if released and RELEASED in states:
        opened = records.open(states[RELEASED], registry, Kind.STATE)
        return records.read(opened.blob, topology.state_chunk, digest=True)
    return records.read(records.open(record, registry, Kind.VERSION).blob, topology.model_chunk, digest=True)


def audit(history: History, run: str, strategies: StrategyCode = NO_CODE) -> list[str]:
    """What does not add up in a run: the ledger's chain, and every scalar computed again from journal values.

    Raises:
        ConfigError, StateError: the run's own strategy is not allowed any more, or its code is not here.
    """
    findings = []
    if (number := history.broken_link()) is not None:
        findings.append(f"ledger entry {number} does not follow from the one before")
    site_statistics, bundle = SiteStatistics(), history.run(run).record().bundle
    for plan, _ in history.run(run).plans():
        rows = history.update_rows([member.id for member in plan.members])
        chosen = strategies.strategy(plan.strategy, plan.parameters, bundle)
        expected = members(rows, plan.version - 1, chosen, site_statistics, plan.population)
        if expected != plan.members:
            findings.append(f"version {plan.version}: the stored weights do not follow from the journal")
        if plan.rate != chosen.rate:
            findings.append(f"version {plan.version}: the stored rate is not the strategy's")
        site_statistics.merged(plan.members)
    return findings


def _changed(plan: MergePlan, what_if: WhatIf, chosen: Strategy) -> MergePlan:
    kept = tuple(member for member in plan.members if member.site not in what_if.without)
    if what_if.strategy is None:
        return replace(plan, members=kept)

    def weighed(member: Member) -> Member:
        return replace(member, staleness_weight=weight_at(chosen.staleness, member.staleness))

    return replace(
        plan,
        strategy=chosen.name,
        rate=chosen.rate,
        members=tuple(weighed(member) for member in kept),
        ids=(*plan.ids[:2], *(hashlib.sha256(plan.ids[0] + s.encode()).digest()[:16] for s in chosen.state)),
    )


class _Overlay:
    """A store that reads from both and writes to the first; the real one is never changed."""

    def __init__(self, top: BlobStore, base: BlobStore) -> None:
        self._top = top
        self._base = base

    def get(self, key: str, limit: int) -> bytes:
        return (self._top if self._top.has(key) else self._base).get(key, limit)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._top.put(key, data)

    def has(self, key: str) -> bool:
        return self._top.has(key) or self._base.has(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._top.list(prefix)

    def delete(self, key: str) -> None:
        self._top.delete(key)

    def put_head(self, name: str, data: bytes) -> None:
        """A replay has no head."""
        raise StateError(f"a replay of {name} does not publish")

    def get_head(self, name: str, limit: int) -> bytes | None:
        return self._base.get_head(name, limit)

    def close(self) -> None:
        self._top.close()

    def written(self) -> set[str]:
        """Keys written so far."""
        return {info.key for info in self._top.list("")}

    def drop(self, keys: Collection[str]) -> None:
        """Forget what the next version no longer needs."""
        for key in keys:
            self._top.delete(key)
