"""What commands about runs and models take time for: reading what an operator uploaded, sealing models and code anew.

Everything here only writes objects that nothing refers to yet; they count once the rules have taken what was made.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial

import nacl.utils
import structlog

from aggregator.audit.replay import read_version
from aggregator.config import RunConfig, ending, parse_run
from aggregator.domain.effects import Prepare
from aggregator.domain.events import CommandArrived, Prepared
from aggregator.domain.state import CodeOffered, NewModel, NewRun
from aggregator.pipeline.genesis import Genesis, take_over
from aggregator.pipeline.merge import RELEASED
from aggregator.pipeline.records import Records
from aggregator.pipeline.run_context import RunContext, VersionSource
from aggregator.pipeline.strategy_code import NO_CODE, StrategyCode
from broker.blobs.base import BlobStore
from broker.blobs.transfer import read_blob
from protocol import limits, topology
from protocol.codec import Value, Word, decode, encode
from protocol.envelope import body, raw_body, unlock, verify
from protocol.errors import ConfigError, FledgeError, Malformed, Missing, WireError, WrongContext
from protocol.keys import Participant, Role
from protocol.messages import Bundle, Card, Kind
from protocol.registry import Registry
from protocol.spec import ModelSpec

log = structlog.get_logger("aggregator")
_TEXT = 1024


class Preparation:
    """Answers `Prepare` with `Prepared`, on a thread of its own."""

    def __init__(
        self,
        records_of: Callable[[str], Records],
        store: BlobStore,
        registry: Callable[[], Registry],
        strategies: StrategyCode = NO_CODE,
    ) -> None:
        """`registry` gives the one in force; `store` is read without a cache, for uploads are read once."""
        self._records_of = records_of
        self._store = store
        self._registry = registry
        self._strategies = strategies
        self.card: Callable[[str, bytes], Card | None] = lru_cache(maxsize=4096)(self._read_card)
        """What a card of ours (of this run, so signed) says; None if it cannot be read any more."""

    def work(self, order: Prepare, source: VersionSource | None, card: tuple[str, bytes] | None) -> Prepared:
        """Make ready what a command asks for; says so also if it cannot be done.

        Args:
            source: the version that the order is about, where there is one.
            card: the run and the signed card of the published model that it is about, where there is one.
        """
        command, run = order.command, order.run
        try:
            match command.command:
                case "run.create":
                    return self._create(command, run)
                case "run.clone" if source is not None:
                    return self._clone(command, source)
                case "run.offer" if source is not None:
                    return self._offer(command, source)
                case "model.export" | "model.publish" if source is not None:
                    made = self._seal(command, source)
                    return replace(made, values={**made.values, "chosen": order.chosen}) if order.chosen else made
                case "model.card" if card is not None:
                    return self._wrap_card(command, order.model, *card)
            raise ConfigError(f"{command.command}: this aggregator does not know how to do that")
        except FledgeError as error:
            reason = "not_possible"
            text = str(error)
        except Exception as error:  # a command that finds a defect of ours is answered, too
            log.exception("order.failed", command=command.command)
            reason, text = "not_possible", f"the aggregator could not do it ({type(error).__name__}); see its log"
        return Prepared(command=command, reason=reason, text=text[:_TEXT])

    # ---- runs

    def _create(self, command: CommandArrived, run: str) -> Prepared:
        registry, records = self._registry(), self._records_of(run)
        raw = self._uploaded(command)
        verified = verify(raw, registry, federation=records.federation, kinds={Kind.BUNDLE}, limit=limits.STORED_RECORD)
        if (verified.core.run, verified.sender.name) != (run, command.operator):
            raise WrongContext(
                f"what {command.operator} uploaded is run {verified.core.run} of {verified.sender.name}, not {run}"
            )
        key = unlock(verified, records.identity)
        says = body(verified, Bundle, key)
        manifest = verified.manifest
        if manifest is None or manifest.length <= says.code + says.spec:
            raise Malformed("the upload is shorter than it says", "truncated")
        config = ending(parse_run(says.config)).model_copy(update={"name": run})
        stream = read_blob(
            self._store, key.reader(manifest), partial(topology.bundle_key, command.operator), pool=records.pool
        )
        parts = _Parts(stream)
        code = parts.take(says.code)
        spec = _spec(parts.take(says.spec))
        if spec.model_length != manifest.length - says.code - says.spec or spec.digest != verified.core.spec:
            raise Malformed("the model is not what its specification describes", "wrong_length")
        genesis = Genesis(spec, parts.rest)
        new = self._taken_over(config, genesis, records, registry, code, command.operator)
        return Prepared(command=command, made=new, values=_told(config, spec, code))

    def _taken_over(
        self, config: RunConfig, genesis: Genesis, records: Records, registry: Registry, code: bytes, operator: str
    ) -> NewRun:
        new = take_over(config, genesis, records, registry, code=code, strategies=self._strategies)
        return replace(new, operator=operator)

    def _uploaded(self, command: CommandArrived) -> bytes:
        digest = str(command.arguments.get("record", ""))
        try:
            raw = self._store.get(topology.bundle_key(command.operator, digest), limits.STORED_RECORD)
        except Missing:
            raise ConfigError(f"there is no upload {digest[:16]} of {command.operator}; upload the run again") from None
        if hashlib.sha256(raw).hexdigest() != digest:
            raise WrongContext(f"the upload {digest[:16]} is not what its name says; upload the run again")
        return raw

    def _clone(self, command: CommandArrived, source: VersionSource) -> Prepared:
        registry, old = self._registry(), source.serving
        name = str(command.arguments["as"])
        config = old.config.model_copy(update={"name": name})
        code = self._code(old, registry)
        records = self._records_of(name)
        payload = partial(read_version, old.records, registry, source.record, source.states, released=False)
        genesis = Genesis(old.spec, payload)
        new = self._taken_over(config, genesis, records, registry, code, command.operator)
        return Prepared(command=command, made=new, values=_told(config, old.spec, code))

    def _code(self, serving: RunContext, registry: Registry) -> bytes:
        if not serving.code_record:
            return b""
        opened = serving.records.open(serving.code_record, registry, Kind.CODE)
        return serving.records.read_whole(opened.blob, topology.model_chunk)

    def _offer(self, command: CommandArrived, source: VersionSource) -> Prepared:
        serving = source.serving
        if not serving.code_record:
            return Prepared(command=command, values={"code": "", "record": ""})
        records = serving.records
        raw = records.rewrap(serving.code_record, self._registry(), Kind.CODE, lambda body: body)
        digest, bundle = records.put_record(raw), serving.rules.bundle or b""
        return Prepared(
            command=command,
            made=CodeOffered(run=serving.config.name, code_record=raw),
            values={"code": bundle.hex(), "record": digest.hex()},
        )

    # ---- models

    def _read_card(self, run: str, raw: bytes) -> Card | None:
        try:
            opened = self._records_of(run).open(raw, self._registry(), Kind.CARD)
            return decode(Card, raw_body(opened.verified, opened.key), limits.BODY)
        except WireError as error:
            log.warning("card.not_read", run=run, reason=error.reason)
            return None

    def _seal(self, command: CommandArrived, source: VersionSource) -> Prepared:
        """Seal a version once more, with a card: for one operator, or (published) for all."""
        serving, registry, arguments = source.serving, self._registry(), command.arguments
        records, spec = serving.records, serving.spec
        released = not arguments.get("raw", False) and RELEASED in source.states
        publish = command.command == "model.publish"
        card = _fitting(_describe(command, source, spec, released=released))
        sealer = records.sealer(
            Kind.CARD, nacl.utils.random(16), spec, spec.model_length, registry, version=source.version
        )
        payload = read_version(records, registry, source.record, source.states, released=released)
        manifest = records.upload(sealer, payload)
        to = _everybody(records, registry) if publish else [registry.member(command.operator), records.identity.public]
        raw = sealer.finish(encode(card), to, manifest)
        digest, run = records.put_record(raw).hex(), serving.config.name
        values: dict[str, Value] = {"name": card.name, "run": run, "version": source.version, "record": digest}
        model = NewModel(name=card.name, run=run, version=source.version, size=spec.model_length, record=raw)
        return Prepared(command=command, made=model if publish else None, values=values)

    def _wrap_card(self, command: CommandArrived, name: str, run: str, raw: bytes) -> Prepared:
        records, registry = self._records_of(run), self._registry()
        card = records.rewrap(raw, registry, Kind.CARD, lambda body: body, to=_everybody(records, registry))
        record = records.put_record(card).hex()
        return Prepared(command=command, values={"name": name, "record": record})


def _spec(raw: bytes) -> ModelSpec:
    try:
        return ModelSpec.from_bytes(raw)
    except FledgeError as error:
        raise Malformed(f"the specification in the upload cannot be read ({error}); make the run again") from error


def _everybody(records: Records, registry: Registry) -> list[Participant]:
    return [*records.entitled(registry), *registry.members(Role.OPERATOR)]


def _told(config: RunConfig, spec: ModelSpec, code: bytes) -> dict[str, Value]:
    return {
        "run": config.name,
        "code": hashlib.sha256(code).hexdigest() if code else "",
        "spec": spec.digest.hex(),
        "version": 0,
        "size": spec.model_length,
    }


def _describe(command: CommandArrived, source: VersionSource, spec: ModelSpec, *, released: bool) -> Card:
    said = command.arguments
    name: Word = str(said.get("name") or f"{source.serving.config.name[:40]}-{source.version}")
    labels = said.get("labels") or ()
    return Card(
        name=name,
        publisher=command.operator,
        published=int(time.time()),
        application=str(said.get("application") or ""),
        description=str(said.get("description") or ""),
        framework=str(said.get("framework") or ""),
        precision=str(said.get("precision") or "float32"),
        licence=str(said.get("licence") or ""),
        labels=tuple(str(label) for label in labels) if isinstance(labels, tuple) else (str(labels),),
        released=released,
        parameters=sum(tensor.elements for tensor in spec.tensors),
        sites=source.sites,
        measurements=source.measurements[: limits.MEASUREMENTS],
    )


def _fitting(card: Card) -> Card:
    """The card with as many measurements as it can hold.

    Raises:
        WireError: something else that was given for it does not fit.
    """
    told = card
    while len(encode(told)) > limits.BODY and told.measurements:
        told = replace(told, measurements=told.measurements[: len(told.measurements) // 2])
    if told is not card:
        log.warning("card.shortened", name=card.name, told=len(told.measurements), measured=len(card.measurements))
    decode(Card, encode(told), limits.BODY)  # what it says was an operator's words a moment ago
    return told


class _Parts:
    """Cuts a stream of records into parts that follow each other, and records again."""

    def __init__(self, stream: Iterator[memoryview]) -> None:
        self._stream = stream
        self._left = b""

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            Malformed: the stream ends before.
        """
        parts, got = [self._left], len(self._left)
        while got < size:
            record = next(self._stream, None)
            if record is None:
                raise Malformed("the upload ends too early", "truncated")
            parts.append(bytes(record))
            got += len(record)
        whole = b"".join(parts)
        self._left = whole[size:]
        return whole[:size]

    def rest(self) -> Iterator[bytes]:
        """Whatever follows, in whole records; can be read once."""
        held = bytearray(self._left)
        for record in self._stream:
            held += record
            while len(held) >= limits.RECORD:
                yield bytes(held[: limits.RECORD])
                del held[: limits.RECORD]
        while held:
            yield bytes(held[: limits.RECORD])
            del held[: limits.RECORD]
