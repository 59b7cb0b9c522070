"""Carrying out a training: model in, update out, on a thread of its own; every answer is an event."""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from structlog.typing import FilteringBoundLogger

from broker.blobs.base import BlobStore
from broker.blobs.cache import CachedBlobs
from broker.blobs.transfer import read_blob, read_whole
from broker.runtime.crash_points import crash_point
from protocol import errors, limits
from protocol.blob import Manifest, sealed_size
from protocol.cipher import Octets
from protocol.codec import encode
from protocol.envelope import ContentKey, Sealer, seal
from protocol.messages import Kind, Update
from protocol.metrics import signed_key, told_of
from protocol.spec import ModelSpec, records
from protocol.topology import model_chunk, record_key
from worker.api.filters import FilterChain
from worker.api.trainer import Control, Progress, Trainer, training_seed
from worker.data.classes import check_run
from worker.domain.effects import Train
from worker.domain.events import Evaluated, Event, NotKept, Trained, TrainingFailed
from worker.domain.state import CODE_LOST, Sealed
from worker.intake import ModelRecord, Reader
from worker.pipeline.code_loader import CodeLoader
from worker.pipeline.context import SiteContext
from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute, evaluate
from worker.pipeline.reseal import finish
from worker.policy import OPEN, SitePolicy
from worker.storage.code_store import CodeLost
from worker.storage.incidents import Incidents
from worker.storage.kept_versions import KeptVersion, KeptVersions, best
from worker.storage.local_tensors import LocalTensors
from worker.storage.spool import Spool

_REFUSALS: tuple[type[errors.WireError], ...] = (
    *(errors.Malformed, errors.TooLarge, errors.Untrusted, errors.WrongContext, errors.Unauthorized, errors.Tampered),
    errors.WireError,
)
_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    ((errors.OutOfMemory, MemoryError), "memory"),
    (errors.DataError, "data"),
    (errors.Diverged, "diverged"),
    (errors.NothingLearned, "unchanged"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One training, the record of the version it starts from, and the way to stop it."""

    training: Train
    record: bytes
    abort: threading.Event


class _Base:
    """The base model's records, decrypted anew by every call; once all was read, nothing of it is hashed again.

    A model of a single record is kept: that costs no more memory than a larger one's record does.
    """

    def __init__(self, read: Callable[..., Iterator[memoryview]], length: int) -> None:
        self._read = read
        self._single = records(length) == 1
        self._kept: list[bytes] | None = None
        self._proven = False

    def __call__(self) -> Iterator[Octets]:
        if self._kept is None and self._single:
            self._kept = [bytes(record) for record in self._read()]
        return self._records() if self._kept is None else iter(self._kept)

    def _records(self) -> Iterator[memoryview]:
        yield from self._read(proven=self._proven)
        self._proven = True


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a training or a measurement begins with."""

    reader: Reader
    model: ModelRecord
    record: bytes
    base: BaseVersion
    control: Control
    trainer: Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTerms:
    """How this site trains, and what may leave it."""

    trainer: Trainer | None
    """The site's own; None: it has none."""
    deployed: CodeLoader
    """Makes the trainers of runs that bring code."""
    filters: FilterChain
    exclude: Sequence[str]
    seed: bytes
    """What all of the site's trainings are seeded from."""
    policy: SitePolicy = OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlaces:
    """What a training reads from and writes to."""

    store: BlobStore
    spool: Spool
    own: LocalTensors
    cases: Incidents
    kept: KeptVersions


class Training:
    """Answers `Train`."""

    def __init__(self, terms: TrainingTerms, places: TrainingPlaces, context: SiteContext, progress: Progress) -> None:
        self._own_trainer = terms.trainer
        self._deployed = terms.deployed
        self._egress = Egress(filters=terms.filters, exclude=terms.exclude, own=places.own)
        self._seed = terms.seed
        self._policy = terms.policy
        self._own = places.own
        self._store = places.store
        self._spool = places.spool
        self._cases = places.cases
        self._kept = places.kept
        self._reader = context.reader
        self._tell = context.tell
        self._log = context.log
        self._progress = progress
        self._harmless: set[str] = set()
        """Names of metrics that may leave the site."""
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="worker fetch")
        self._spec: ModelSpec | None = None
        self._spec_keys: tuple[str, ...] = ()
        """Where the specification lies: its record, then its chunks."""
        self._opened: tuple[Reader, bytes, ModelRecord] | None = None

    def close(self) -> None:
        """Release the threads that fetch ahead, and what was loaded of deployed code."""
        self._deployed.put_away()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def forget_own(self, run: str) -> None:
        """Delete the site's own tensors of a run, and put its code away; on the training thread, so that no training
        writes them again."""
        self._deployed.put_away()
        try:
            self._own.forget(run)
            self._kept.forget(run)
        except OSError as error:  # another training of the run would begin with them; nothing leaves the site
            self._log.warning("own.not_dropped", run=run, kind=type(error).__name__)

    def keep_last(self, run: str, record: bytes, stopping: threading.Event) -> None:
        """Fetch the last version of a run that has ended, if the site took part; tells `NotKept` to be asked again."""
        kept = self._kept.of(run)
        if not kept:
            return
        if kept[-1].record == record:  # by a training from it
            self._log.info("model.kept", run=run, version=kept[-1].version)
            return
        try:
            reader = self._reader()
            model = self._model_of(reader, record)
            self._spec_of(reader, model)
            for _ in self._read(model.manifest, model.key):
                if stopping.is_set():
                    return
        except (errors.Missing, errors.WireError) as error:
            # Deleted, or not what was signed: there is nothing to wait for.
            self._log.warning("model.not_kept", run=run, kind=type(error).__name__)
        except errors.FledgeError as error:
            self._log.warning("model.not_kept", run=run, kind=type(error).__name__)
            self._tell(NotKept(run=run))
        else:
            self._keep(reader, model, record)
            self._log.info("model.kept", run=run, version=model.version)

    def run(self, job: Job) -> None:
        """Train; tells `Evaluated` if it was asked for, then `Trained` or `TrainingFailed`."""
        told = self._told(job)
        told.info("training.started")
        self._tell(self._attempt(job, "training", self._train))

    def measure(self, job: Job) -> None:
        """Measure the last version of a run that has ended; tells `Evaluated` or `TrainingFailed`."""
        if self._kept.of(job.training.run):
            told = self._told(job)
            told.info("measuring.started")
            self._tell(self._attempt(job, "measuring", self._measure))
        else:  # the site took no part
            self._tell(Evaluated(id=job.training.id, envelope=b""))

    def _told(self, job: Job) -> FilteringBoundLogger:
        training = job.training
        return self._log.bind(run=training.run, version=training.version, update=training.id.hex()[:8])

    def _attempt(self, job: Job, what: str, work: Callable[[Job], Event]) -> Event:
        """What comes of it, or why nothing did."""
        training, told = job.training, self._told(job)
        try:
            return work(job)
        except errors.Aborted:
            told.info("training.aborted")
            return TrainingFailed(id=training.id, code="aborted")
        except (Exception, SystemExit) as error:
            # A trainer is foreign code at a thread's edge. What it says may name a patient, so it goes into a case, and
            # neither into the log, whose lines operators may ask for, nor into any message.
            code = _code(error)
            title = f"{what} of run {training.run} from version {training.version} failed ({code})"
            sentence = [f"{error}\n\n"] if isinstance(error, errors.FledgeError) else []
            case = self._cases.keep(title, "".join([*sentence, *traceback.format_exception(error)]))
            todo = f"`fledge site case {case}` with this kit shows what happened"
            told.error("training.failed", kind=type(error).__name__, code=code, case=case, todo=todo)
            return TrainingFailed(id=training.id, code=code, case=case)

    def _train(self, job: Job) -> Trained:
        training, told, began = job.training, self._told(job), time.monotonic()
        ready = self._begin(job)
        length = ready.base.spec.update_length
        self._spool.check_room(sealed_size(length, ready.reader.registry.suite))
        if training.evaluation:
            self._tell(self._evaluate(training, ready))
        sealed, said = self._contribute(training, ready)
        self._keep(ready.reader, ready.model, job.record)
        told.info(
            "training.done",
            seconds=round(time.monotonic() - began, 3),
            steps=said.steps,
            examples=said.examples,
            **told_of(said.metrics),
        )
        crash_point("worker.trained")
        return Trained(id=training.id, sealed=sealed)

    def _measure(self, job: Job) -> Evaluated:
        return self._evaluate(job.training, self._begin(job))

    def _begin(self, job: Job) -> _Ready:
        reader, training = self._reader(), job.training
        model = self._model_of(reader, job.record)
        spec = self._spec_of(reader, model)
        if model.manifest.length != spec.model_length:
            raise errors.Tampered(f"version {model.version} does not have the length that its specification gives")
        base = BaseVersion(spec, _Base(partial(self._read, model.manifest, model.key), spec.model_length))
        control = Control(
            run=model.run,
            version=model.version,
            task=model.says.task,
            seed=training_seed(self._seed, model.run, model.version, training.count),
            on_progress=self._on_progress,
            abort=job.abort,
            fingerprint_key=_fingerprint_key(reader),
        )
        control.check()
        check_run(model.says.task, self._deployed.options(model.run))
        return _Ready(reader, model, job.record, base, control, self._trainer_of(training, model))

    def _trainer_of(self, training: Train, model: ModelRecord) -> Trainer:
        """The trainer that the version names: the site's own, or that of the very code deployed for the run."""
        bundle = model.says.bundle or b""
        if bundle != training.bundle:
            raise errors.Tampered(f"version {model.version} of run {model.run} names other code than was decided on")
        if bundle:
            return self._deployed.trainer(model.run, bundle, model.says.task)
        self._deployed.put_away()
        if self._own_trainer is None:
            raise errors.ConfigError(f"run {model.run} brings no code, and worker.toml names no `trainer`")
        return self._own_trainer

    def _on_progress(self, share: float, metrics: Mapping[str, float]) -> None:
        self._check_metrics(metrics)
        self._progress(share, metrics)

    def _check_metrics(self, metrics: Mapping[str, float]) -> None:
        new = metrics.keys() - self._harmless
        self._policy.check_metrics(sorted(new))
        self._harmless |= new

    def _evaluate(self, training: Train, ready: _Ready) -> Evaluated:
        trainer, reader = ready.trainer, ready.reader
        egress = self._egress
        found = evaluate(trainer, ready.base, control=ready.control, exclude=egress.exclude, own=self._own)
        self._check_metrics(found.metrics)
        shown = told_of(found.metrics)
        self._log.info("version.measured", run=training.run, version=training.version, examples=found.examples, **shown)
        key = getattr(trainer, "key_metric", "") or signed_key(found.metrics)
        self._keep(reader, ready.model, ready.record, found.metrics, key)
        envelope = seal(
            reader.identity,
            Kind.EVALUATION,
            found,
            reader.aggregators,
            federation=reader.federation,
            message_id=training.evaluation,
            run=training.run,
            epoch=training.epoch,
            sequence=training.sequence - 1,
            version=training.version,
            spec=ready.base.spec.digest,
        )
        return Evaluated(id=training.id, envelope=envelope)

    def _contribute(self, training: Train, ready: _Ready) -> tuple[Sealed, Update]:
        reader, spec = ready.reader, ready.base.spec
        sealer = Sealer(
            reader.identity,
            Kind.UPDATE,
            federation=reader.federation,
            message_id=training.id,
            run=training.run,
            epoch=training.epoch,
            sequence=training.sequence,
            version=training.version,
            spec=spec.digest,
            length=spec.update_length,
            suite=reader.registry.suite,
        )
        with self._spool.batch() as batch:
            update, manifest = contribute(
                ready.trainer,
                ready.base,
                self._egress,
                UpdateOutput(sealer, batch.chunks(self._pool)),
                control=ready.control,
                bundle=training.bundle or None,
            )
            self._check_metrics(update.metrics)
            batch.sync()
            return finish(sealer, encode(update), reader.aggregators, manifest, reader.identity), update

    def _keep(
        self,
        reader: Reader,
        model: ModelRecord,
        record: bytes,
        metrics: Mapping[str, float] | None = None,
        key: str = "",
    ) -> None:
        """Note that the site holds this version; of the cache, the best version's chunks go as late as the newest's."""
        noted = KeptVersion(run=model.run, version=model.version, record=record, metrics=metrics or {}, key=key)
        try:
            found = best(self._kept.note(noted))
        except errors.StateError as error:  # only `fledge infer` will miss it
            self._log.warning("model.not_kept", run=model.run, version=model.version, kind=type(error).__name__)
            return
        if found is not None and isinstance(self._store, CachedBlobs):
            with suppress(errors.WireError):  # its signer is no aggregator any more
                manifest = reader.model(found.record).manifest
                self._store.touch([*self._spec_keys, *(model_chunk(chunk.hex()) for chunk in manifest.chunks)])

    def _model_of(self, reader: Reader, record: bytes) -> ModelRecord:
        """A version's record opened; kept for further trainings from it, as long as the same registry is in force."""
        if self._opened is None or self._opened[:2] != (reader, record):
            self._opened = (reader, record, reader.model(record))
        return self._opened[2]

    def _spec_of(self, reader: Reader, model: ModelRecord) -> ModelSpec:
        """The specification of a version; it stays the same throughout a run, but is sealed again for other members."""
        key = record_key(model.says.spec_record.hex())
        if self._spec is None or (self._spec_keys[0], self._spec.digest) != (key, model.spec):
            record = reader.spec(self._store.get(key, limits.STORED_RECORD))
            if record.manifest.length > limits.SPEC:
                raise errors.TooLarge(
                    f"a specification of {record.manifest.length} bytes; at most {limits.SPEC} are allowed"
                )
            spec = ModelSpec.from_bytes(read_whole(self._store, record.key.reader(record.manifest), model_chunk))
            if spec.digest != model.spec:
                raise errors.Tampered("the specification is not the one the version names")
            self._spec = spec
            self._spec_keys = (key, *(model_chunk(chunk.hex()) for chunk in record.manifest.chunks))
        return self._spec

    def _read(self, manifest: Manifest, key: ContentKey, *, proven: bool = False) -> Iterator[memoryview]:
        return read_blob(self._store, key.reader(manifest, proven=proven), model_chunk, pool=self._pool, ahead=2)


def _fingerprint_key(reader: Reader) -> bytes:
    """A key that only this site has and that outlives restarts; fingerprints made with it can be checked here alone."""
    return hashlib.sha256(b"fledge/v1/fingerprint key\0" + bytes(reader.identity.sign)).digest()


def _code(error: BaseException) -> str:
    """The fixed word for an error, safe to tell anyone."""
    if isinstance(error, errors.DiskFull):
        return "disk_full"
    if isinstance(error, CodeLost):
        return CODE_LOST
    if isinstance(error, errors.WireError):
        # Neither the error's own reason nor its class's, which foreign code might have made up.
        return next(kind.reason for kind in _REFUSALS if isinstance(error, kind))
    if isinstance(error, errors.StoreError):
        return "store"
    if isinstance(error, errors.ConfigError):
        return "config"
    if isinstance(error, errors.StateError):
        return "state"
    return next((word for kinds, word in _WORDS if isinstance(error, kinds)), "trainer")
