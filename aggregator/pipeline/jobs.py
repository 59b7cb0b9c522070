"""The slow things an aggregator does, each on a thread of a pool: every answer is an event for the rules."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import structlog

from aggregator.domain import events
from aggregator.pipeline.admission import inspect
from aggregator.pipeline.production import BadMember, Inputs, Production
from aggregator.pipeline.records import Records
from aggregator.rules.planning import FAILED
from aggregator.strategy.plan import MergePlan
from broker.blobs.base import BlobStore
from broker.blobs.transfer import read_blob
from broker.runtime.crash_points import crash_point
from protocol import limits, topology
from protocol.codec import decode, encode
from protocol.errors import Corrupt, FledgeError, Missing, StoreError, StrategyFailed, TrainingError, WireError
from protocol.messages import Kind, Version
from protocol.registry import Registry
from protocol.spec import ModelSpec

log = structlog.get_logger("aggregator")


class RunJobs:
    """Admission, merges, and wrapping records for newer registries, for one run."""

    def __init__(
        self,
        records: Records,
        spec: ModelSpec,
        production: Production,
        store: BlobStore,
        io: ThreadPoolExecutor,
        registry: Callable[[], Registry],
    ) -> None:
        """`registry` gives the one in force; `io` fetches chunks ahead."""
        self._run = records.run
        self.records = records
        self.spec = spec
        self._production = production
        self._store = store
        self._io = io
        self._registry = registry
        # Bound once: a logger of the module is set up anew for every line.
        self._log = log.bind()

    def admit(self, id: bytes, envelope: bytes) -> events.Admitted | events.NotAdmitted:
        """Stream an update's blob once; tells `Admitted` or `NotAdmitted`."""
        self._log.info("admission.started", update=id.hex()[:8])
        try:
            blob = self.records.opened.get(envelope) or self.records.open_update(envelope, self._registry())
            key_of = partial(topology.update_chunk, blob.sender)
            payload = read_blob(self._store, blob.key.reader(blob.manifest), key_of, pool=self._io, ahead=2)
            norm = inspect(self.spec, payload)
        except WireError as error:
            return events.NotAdmitted(id=id, reason=error.reason, retry=False)
        except Missing:
            return events.NotAdmitted(id=id, reason="chunk_missing", retry=True, missing=True)
        except Corrupt as error:
            log.warning("admission.damaged", update=id.hex()[:8], error=str(error))
            return events.NotAdmitted(id=id, reason="chunk_damaged", retry=True, missing=True)
        except (StoreError, MemoryError) as error:
            log.warning("admission.parked", update=id.hex()[:8], error=str(error))
            return events.NotAdmitted(id=id, reason="store_away", retry=True)
        crash_point("aggregator.admitted")
        return events.Admitted(id=id, norm=norm)

    def merge(self, plan: MergePlan, inputs: Inputs) -> events.Merged | events.MergeFailed:
        """Compute a version; tells `Merged` or `MergeFailed`."""
        log.info("merge.started", version=plan.version, members=[m.id.hex()[:8] for m in plan.members])
        try:
            return events.Merged(plan=plan, product=self._production.produce(plan, inputs))
        except BadMember as error:
            log.warning("merge.bad_member", version=plan.version, update=error.id.hex()[:8], reason=error.reason)
            return events.MergeFailed(plan=plan, reason=error.reason, bad=error.id)
        except StrategyFailed as error:
            log.error("merge.strategy_failed", version=plan.version, error=str(error), exc_info=error.__cause__)
            return events.MergeFailed(plan=plan, reason=FAILED, bad=None, pause=True)
        except TrainingError as error:
            worst = max(plan.members, key=lambda member: member.weight * member.norm)
            log.warning("merge.overflow", version=plan.version, update=worst.id.hex()[:8], error=str(error))
            return events.MergeFailed(plan=plan, reason="does_not_fit", bad=worst.id, reject=True)
        except (FledgeError, MemoryError) as error:
            log.warning("merge.failed", version=plan.version, error=str(error))
            return events.MergeFailed(plan=plan, reason="merge_failed", bad=None)

    def reissue(
        self, version: int, registry: Registry, record: bytes, spec_record: bytes
    ) -> events.Reissued | events.ReissueFailed:
        """Wrap the newest records for another registry's sites; tells `Reissued` or `ReissueFailed`."""
        try:
            spec_record = self.records.rewrap(spec_record, registry, Kind.SPEC, lambda body: body)
            digest = self.records.put_record(spec_record)
            record = self.records.rewrap(record, registry, Kind.VERSION, partial(_rebind, digest, registry.version))
            self.records.put_record(record)
        except StoreError as error:
            log.warning("reissue.failed", version=version, registry=registry.version, error=str(error))
            return events.ReissueFailed(run=self._run)
        return events.Reissued(
            run=self._run, version=version, registry=registry.version, record=record, spec_record=spec_record
        )


def _rebind(spec_record: bytes, registry: int, body: bytes) -> bytes:
    return encode(replace(decode(Version, body, limits.BODY), spec_record=spec_record, registry=registry))
