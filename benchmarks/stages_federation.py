"""A hub and its sites in one process, for `stages`: the product's own parts, called one after the other by hand.

Sites train a model of noise and write into spools of their own; the hub admits what they upload and merges it. Every
version follows from the one before, so caches hold what those of running processes hold.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import nacl.utils
import structlog

from aggregator.config import RunConfig
from aggregator.domain.events import Admitted, Merged
from aggregator.pipeline.genesis import Genesis, first_body, take_over
from aggregator.pipeline.jobs import RunJobs
from aggregator.pipeline.merge import RELEASED
from aggregator.pipeline.production import Inputs, Production
from aggregator.pipeline.records import Records, record_digest
from aggregator.service.executors import Executors
from aggregator.strategy.base import ema_decay
from aggregator.strategy.plan import Member, MergePlan
from benchmarks.pipeline_trainer import NoiseTrainer
from benchmarks.usage import Meter, Usage
from broker.blobs.base import BlobStore
from broker.blobs.cache import SMALL, CachedBlobs
from protocol import limits
from protocol.envelope import verify
from protocol.keys import Identity, Role
from protocol.messages import Kind
from protocol.registry import Registry
from protocol.topology import model_chunk, state_chunk, update_chunk
from worker.api.filters import privacy_filters
from worker.api.trainer import Control, TrainResult
from worker.api.weights import Weights
from worker.domain.effects import Train
from worker.domain.events import Event, Trained, Uploaded
from worker.domain.state import Sealed, UpdateRow
from worker.intake import Reader
from worker.pipeline.code_loader import CodeLoader
from worker.pipeline.context import SiteContext
from worker.pipeline.training import Job, Training, TrainingPlaces, TrainingTerms
from worker.pipeline.uploader import Uploader
from worker.policy import OPEN
from worker.storage.code_store import CodeStore
from worker.storage.incidents import Incidents
from worker.storage.kept_versions import KeptVersions
from worker.storage.local_tensors import LocalTensors
from worker.storage.spool import Spool

FEDERATION, RUN = "benchmark", "stages"
_FILTERS: Mapping[str, Mapping[str, str | float]] = {
    "clip": {"name": "clip", "norm": 10.0},
    "unsafe-none": {"name": "unsafe-none"},
}


class StageTrainer(NoiseTrainer):
    """Measures how a version is loaded, adds noise, and starts the clock of what comes after training."""

    def __init__(self, size_mb: int) -> None:
        super().__init__("stages", size_mb, True)
        self.loaded: Usage | None = None
        self.forming: Meter | None = None

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Load the base and add noise."""
        meter = Meter()
        base.copy_into(self._model.weights)
        self.loaded = meter.stop()
        self._model.train()
        self.forming = Meter()
        return TrainResult(weights=self._model.weights, examples=100, steps=1)


@dataclass(frozen=True, slots=True)
class Made:
    """An update in its site's spool."""

    id: bytes
    sealed: Sealed


class BenchSite:
    """One site: spool and training."""

    def __init__(self, reader: Reader, store: BlobStore, folder: Path, trainer: StageTrainer, filter: str) -> None:
        self.name = reader.identity.name
        self._trainer = trainer
        self._told: list[Event] = []
        self._sequence = 0
        self.spool = Spool(folder / "spool", 64 << 30)
        context = SiteContext(
            site=self.name, reader=lambda: reader, tell=self._told.append, log=structlog.get_logger("worker")
        )
        self._uploader = Uploader(store, self.spool, context)
        codes = CodeStore(folder / "code")
        self._training = Training(
            TrainingTerms(
                trainer=trainer,
                deployed=CodeLoader(codes, context.reader, OPEN, lambda run: {}),
                filters=privacy_filters(_FILTERS[filter]),
                exclude=(),
                seed=bytes(32),
            ),
            TrainingPlaces(
                store=store,
                spool=self.spool,
                own=LocalTensors(folder / "own", reader.identity, FEDERATION),
                cases=Incidents(folder / "cases"),
                kept=KeptVersions(folder / "models"),
            ),
            context,
            lambda share, metrics: None,
        )

    def contribute(self, version: int, record: bytes) -> tuple[Made, dict[str, Usage]]:
        """Train once from a version; what loading it and forming the update took."""
        self._sequence += 1
        id = nacl.utils.random(16)
        order = Train(run=RUN, version=version, epoch=1, sequence=self._sequence, id=id, evaluation=b"", count=0)
        self._training.run(Job(order, record, threading.Event()))
        trained, loaded, forming = self._told.pop(), self._trainer.loaded, self._trainer.forming
        if not isinstance(trained, Trained) or loaded is None or forming is None:
            raise RuntimeError(f"{self.name} could not train: {trained}")
        return Made(id, trained.sealed), {"load": loaded, "form": forming.stop()}

    def upload(self, made: Made) -> Usage:
        """Put an update's chunks into the store."""
        row = UpdateRow(
            row=1, id=made.id, run=RUN, base_version=0, epoch=1, sequence=self._sequence, chunks=made.sealed.chunks
        )
        meter = Meter()
        self._uploader.upload(row, anew=False)
        used = meter.stop()
        if not isinstance(told := self._told.pop(), Uploaded):
            raise RuntimeError(f"{self.name} could not upload: {told}")
        return used

    def close(self) -> None:
        """Release its threads."""
        self._training.close()


class BenchHub:
    """The aggregator's side: cache, admission and merge."""

    def __init__(self, store: BlobStore, identity: Identity, registry: Registry, folder: Path, first: Genesis) -> None:
        self._registry = registry
        self._cached = CachedBlobs(store, folder / "cache", 64 << 30, keep_puts=True, small=SMALL)
        self._executors = Executors(lambda event: None, threading.Event())
        records = Records(FEDERATION, RUN, identity, self._cached, self._executors.io)
        config = RunConfig.model_validate({"name": RUN, "strategy": {"name": "fedbuff"}, "evaluate": False})
        new = take_over(config, first, records, registry)
        self._rules = new.rules
        self._body = first_body(config, new.rules, record_digest(new.spec_record), registry)
        production = Production(records, first.spec, new.rules.strategy, self._executors.cipher, average=True)
        self._jobs = RunJobs(records, first.spec, production, self._cached, self._executors.io, lambda: registry)
        self.version, self.record = 0, new.record
        self._states: Mapping[str, bytes] = {}

    def admit(self, made: Made) -> tuple[float, Usage]:
        """Admit an update; its norm and what that took."""
        meter = Meter()
        answer = self._jobs.admit(made.id, made.sealed.envelope)
        used = meter.stop()
        if not isinstance(answer, Admitted):
            raise RuntimeError(f"an update was not admitted: {answer}")
        return answer.norm, used

    def merge(self, sites: list[BenchSite], made: list[Made], norms: list[float]) -> Usage:
        """Merge one update of each site into the next version, and delete what nothing refers to any more."""
        plan = self._plan([site.name for site in sites], made, norms)
        inputs = Inputs(
            parent=self.record,
            states=self._states,
            envelopes=[each.sealed.envelope for each in made],
            registry=self._registry,
            body=self._body,
        )
        meter = Meter()
        answer = self._jobs.merge(plan, inputs)
        used = meter.stop()
        if not isinstance(answer, Merged):
            raise RuntimeError(f"the merge failed: {answer}")
        old = [(self.record, model_chunk), *((record, state_chunk) for record in self._states.values())]
        for record, key_of in old:
            for name in self._chunks(record):
                self._cached.delete(key_of(name.hex()))
        for site, each in zip(sites, made, strict=True):
            for name in each.sealed.chunks:
                self._cached.delete(update_chunk(site.name, name.hex()))
            site.spool.drop(each.sealed.chunks)
        self.version, self.record, self._states = plan.version, answer.product.record, answer.product.states
        return used

    def _plan(self, sites: list[str], made: list[Made], norms: list[float]) -> MergePlan:
        members = tuple(
            Member(
                id=each.id,
                order=order,
                site=site,
                base_version=self.version,
                staleness=0,
                staleness_weight=1.0,
                examples=100,
                seconds=1.0,
                example_weight=1.0,
                norm=norm,
                clip=1.0,
                absent=(),
            )
            for order, (site, each, norm) in enumerate(zip(sites, made, norms, strict=True))
        )
        return MergePlan(
            run=RUN,
            version=self.version + 1,
            parent=record_digest(self.record),
            strategy=self._rules.strategy.name,
            parameters={},
            members=members,
            population=(),
            divisor=float(len(members)),
            rate=self._rules.strategy.rate,
            release_decay=ema_decay(self.version + 1),
            ids=tuple(nacl.utils.random(16) for _ in ("version", RELEASED)),
            registry=self._registry.version,
        )

    def _chunks(self, record: bytes) -> tuple[bytes, ...]:
        kinds = {Kind.VERSION, Kind.STATE}
        verified = verify(record, self._registry, federation=FEDERATION, kinds=kinds, limit=limits.STORED_RECORD)
        return () if verified.manifest is None else verified.manifest.chunks

    def close(self) -> None:
        """Release its threads."""
        self._executors.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured."""

    size_mb: int
    sites: int
    filter: str
    cipher: str
    remote: bool
    """Whether sites keep what they fetch, as they do unless the store is a directory."""


class Federation:
    """A hub and its sites over one store."""

    def __init__(self, store: BlobStore, folder: Path, shape: Shape) -> None:
        """Found it in an empty folder."""
        hub = Identity.generate("aggregator", Role.AGGREGATOR)
        members = [Identity.generate(f"site-{index}", Role.SITE) for index in range(shape.sites)]
        registry = Registry(version=0, entries=(), cipher=shape.cipher)
        for identity in (hub, *members):
            registry = registry.with_entry(identity.public)
        trainer = StageTrainer(shape.size_mb)
        self.length = trainer.spec.model_length
        """Bytes of the model, and of an update."""
        with ExitStack() as undo:
            self.hub = BenchHub(store, hub, registry, folder / "hub", Genesis(trainer.spec, trainer.initial))
            undo.callback(self.hub.close)
            self.sites = []
            for each in members:
                reader = Reader(each, FEDERATION, registry)
                own: BlobStore = store
                if shape.remote:  # with room for one version, so that the one before goes when the next is loaded
                    own = CachedBlobs(
                        store, folder / each.name / "cache", self.length + self.length // 2 + limits.CHUNK
                    )
                self.sites.append(BenchSite(reader, own, folder / each.name, trainer, shape.filter))
                undo.callback(self.sites[-1].close)
            self._undo = undo.pop_all()

    def version(self) -> dict[str, list[Usage]]:
        """Make one version; what every stage used, each time."""
        found: dict[str, list[Usage]] = {}
        made, norms = [], []
        for site in self.sites:
            each, used = site.contribute(self.hub.version, self.hub.record)
            used["upload"] = site.upload(each)
            norm, used["admission"] = self.hub.admit(each)
            made.append(each)
            norms.append(norm)
            for stage, one in used.items():
                found.setdefault(stage, []).append(one)
        found["merge"] = [self.hub.merge(self.sites, made, norms)]
        return found

    def close(self) -> None:
        """Release all threads; the store stays the caller's to close."""
        self._undo.close()
