"""A federation with fixed keys, one message of every kind, and everything a reader does with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import nacl.public
import nacl.signing

from protocol import limits
from protocol.cipher import Suite
from protocol.codec import encode
from protocol.encodings import DENSE_F32
from protocol.envelope import Sealer, Trust, raw_body, unlock, verify
from protocol.keys import Identity, Participant, Role
from protocol.messages import (
    BODY,
    Attestation,
    Bundle,
    Card,
    Checkpoint,
    Command,
    Evaluation,
    Event,
    Fingerprint,
    Grant,
    Head,
    Kind,
    Measurement,
    Named,
    Outcome,
    Receipt,
    Reply,
    Request,
    RunHead,
    RunState,
    State,
    Update,
    Version,
)
from protocol.registry import Registry, sign_registry
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from tests.support.bodies import typed_body
from tests.support.chunks import collected, plaintext, write_blob

FEDERATION, RUN = "cardiology", "run-1"


def fixed(label: str) -> bytes:
    """Thirty-two bytes that are always the same."""
    return hashlib.sha256(b"fledge/test/" + label.encode()).digest()


def identity(name: str, role: Role) -> Identity:
    """Keys that are always the same; for tests only."""
    sign, box = nacl.signing.SigningKey(fixed(f"{name}/sign")), nacl.public.PrivateKey(fixed(f"{name}/box"))
    return Identity(name, role, sign, box)


ROOT = identity("root", Role.ROOT)
AGGREGATOR = identity("aggregator", Role.AGGREGATOR)
OPERATOR = identity("operator", Role.OPERATOR)
SITE_A = identity("site-a", Role.SITE)
SITE_B = identity("site-b", Role.SITE)
GONE = identity("site-gone", Role.SITE)
PEOPLE = {i.name: i for i in (ROOT, AGGREGATOR, OPERATOR, SITE_A, SITE_B, GONE)}


def _registry() -> Registry:
    registry = Registry(version=0, entries=())
    for member in (AGGREGATOR, OPERATOR, SITE_A, SITE_B, GONE):
        registry = registry.with_entry(member.public)
    return registry.revoke(GONE.name)


REGISTRY = _registry()
SPEC = ModelSpec(
    (
        TensorSpec(name="layer.weight", shape=(5, 3), dtype="F32", kind=TensorKind.PARAMETER),
        TensorSpec(name="norm.running_mean", shape=(3,), dtype="F16", kind=TensorKind.BUFFER),
        TensorSpec(name="norm.batches", shape=(), dtype="I64", kind=TensorKind.OTHER),
        TensorSpec(name="layer.bias", shape=(3,), dtype="BF16", kind=TensorKind.PARAMETER),
        TensorSpec(name="empty", shape=(0, 4), dtype="F64", kind=TensorKind.PARAMETER),
        TensorSpec(name='größe "1"\n', shape=(2,), dtype="BOOL", kind=TensorKind.OTHER),
    )
)
CODE = b"PK: what stands for a zip archive of training code"
CLIP = Named(name="clip", parameters={"norm": 1.5, "layers": ("a", "b"), "per_layer": False, "seed": None, "n": -3})
BODIES: dict[Kind, Any] = {
    Kind.UPDATE: Update(
        encoding=DENSE_F32,
        examples=303,
        steps=100,
        seconds=12.5,
        filters=(CLIP, Named(name="gaussian", parameters={"sigma": 0.01})),
        trainer="digits-mlp",
        bundle=fixed("bundle"),
        absent=("norm.running_mean",),
        fingerprint=Fingerprint(count=303, root=fixed("fingerprint")),
        metrics={"loss": 0.25, "accuracy": 0.9375},
    ),
    Kind.EVALUATION: Evaluation(examples=61, metrics={"accuracy": 0.875}),
    Kind.EVENT: Event(state="training", progress=0.5, metrics={"loss": 0.5}, software="fledge-0.1.0"),
    Kind.VERSION: Version(
        parent=fixed("parent"),
        spec_record=fixed("spec record"),
        updates_per_base=2,
        max_staleness=20,
        evaluate=True,
        task={"lr": 0.003, "steps": 100, "classes": ("healthy", "ill"), "warm": True, "note": None},
        registry=6,
    ),
    Kind.RECEIPT: Receipt(
        message=fixed("update")[:16],
        epoch=1,
        sequence=17,
        outcome=Outcome.REJECTED,
        reason="not_finite",
        highest_epoch=1,
    ),
    Kind.HEAD: Head(
        number=41,
        issued=1_790_000_000,
        not_after=1_790_086_400,
        registry=fixed("registry record"),
        runs=(RunHead(run=RUN, state=RunState.RUNNING, reason="ok", version=7, record=fixed("version record")),),
    ),
    Kind.COMMAND: Command(counter=3, expires=1_790_000_600, command="abort", arguments={"run": RUN, "force": True}),
    Kind.REPLY: Reply(
        message=fixed("command")[:16], ok=False, reason="unknown_run", text="no such run", values={"n": 1}
    ),
    Kind.ANSWER: Reply(
        message=fixed("command")[:16], ok=True, reason="ok", text="", values={"site": ("site-a", "site-b"), "n": (1, 2)}
    ),
    Kind.REQUEST: Request(puts=(fixed("chunk"),), gets=(f"models/{fixed('model').hex()}",)),
    Kind.GRANT: Grant(
        message=fixed("request")[:16],
        head=b"a signed head",
        urls=("https://store.example/up?signature=1", "https://store.example/models?signature=2"),
        expires=1_790_003_600,
    ),
    Kind.STATE: State(stream="fedadam.m", weight=0.75),
    Kind.BUNDLE: Bundle(config=b'name = "run-1"\n', code=len(CODE), spec=len(SPEC.to_bytes())),
    Kind.CARD: Card(
        name="chest-xray",
        publisher="operator",
        published=1_790_000_000,
        application="finds pneumonia",
        description="größe\n",
        framework="torch",
        precision="F32",
        licence="CC-BY-4.0",
        labels=("chest", "2d"),
        released=True,
        parameters=21,
        sites=("site-a", "site-b"),
        measurements=(Measurement(site="site-a", examples=61, metrics={"accuracy": 0.875}),),
    ),
    Kind.ATTESTATION: Attestation(
        update=fixed("update")[:16],
        site="site-a",
        base_version=6,
        outcome=Outcome.MERGED,
        reason="ok",
        digest=fixed("envelope"),
        examples=303,
        weight=0.375,
        model=fixed("model"),
        arrived=1_790_000_000_123,
        settled=None,
        issued=1_790_000_600_000,
    ),
    Kind.CHECKPOINT: Checkpoint(number=5, hash=fixed("entry"), issued=1_790_000_600_000),
}
SENDER = {
    Kind.UPDATE: SITE_A,
    Kind.EVALUATION: SITE_A,
    Kind.EVENT: SITE_A,
    Kind.REPLY: SITE_A,
    Kind.REQUEST: SITE_A,
    Kind.ANSWER: AGGREGATOR,
    Kind.GRANT: AGGREGATOR,
    Kind.VERSION: AGGREGATOR,
    Kind.RECEIPT: AGGREGATOR,
    Kind.HEAD: AGGREGATOR,
    Kind.SPEC: AGGREGATOR,
    Kind.STATE: AGGREGATOR,
    Kind.REGISTRY: ROOT,
    Kind.COMMAND: OPERATOR,
    Kind.BUNDLE: OPERATOR,
    Kind.CODE: AGGREGATOR,
    Kind.CARD: AGGREGATOR,
    Kind.ATTESTATION: AGGREGATOR,
    Kind.CHECKPOINT: AGGREGATOR,
}
TO: dict[Kind, Sequence[Identity]] = {
    Kind.UPDATE: (AGGREGATOR,),
    Kind.EVALUATION: (AGGREGATOR,),
    Kind.EVENT: (AGGREGATOR,),
    Kind.REPLY: (AGGREGATOR, OPERATOR),
    Kind.VERSION: (SITE_A, SITE_B, AGGREGATOR),
    Kind.RECEIPT: (SITE_A,),
    Kind.HEAD: (),
    Kind.SPEC: (SITE_A, SITE_B, AGGREGATOR),
    Kind.STATE: (AGGREGATOR,),
    Kind.REGISTRY: (),
    Kind.COMMAND: (AGGREGATOR,),
    Kind.ANSWER: (OPERATOR,),
    Kind.REQUEST: (AGGREGATOR,),
    Kind.GRANT: (SITE_A,),
    Kind.BUNDLE: (AGGREGATOR,),
    Kind.CODE: (SITE_A, SITE_B, AGGREGATOR),
    Kind.CARD: (SITE_A, SITE_B, OPERATOR, AGGREGATOR),
    Kind.ATTESTATION: (),
    Kind.CHECKPOINT: (),
}
BLOBS = {Kind.UPDATE, Kind.VERSION, Kind.SPEC, Kind.STATE, Kind.BUNDLE, Kind.CODE, Kind.CARD}


def pattern(length: int) -> bytes:
    """Bytes that differ from record to record."""
    block = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(1021))
    return (block * (length // len(block) + 1))[:length]


def payload(kind: Kind) -> bytes:
    """What the kind's blob holds; empty without one."""
    if kind not in BLOBS:
        return b""
    if kind == Kind.SPEC:
        return SPEC.to_bytes()
    if kind == Kind.CODE:
        return CODE
    if kind == Kind.BUNDLE:
        return CODE + SPEC.to_bytes() + payload(Kind.VERSION)
    length = SPEC.model_length if kind in (Kind.VERSION, Kind.CARD) else SPEC.update_length
    return SPEC.header + pattern(length - len(SPEC.header))


@dataclass(frozen=True)
class Made:
    """A message and its chunks."""

    raw: bytes
    chunks: tuple[bytes, ...] = ()


def make(
    kind: Kind,
    *,
    signer: Identity | None = None,
    to: Iterable[Identity] | None = None,
    body: Any = None,
    data: bytes | None = None,
    federation: str = FEDERATION,
    **context: Any,
) -> Made:
    """A message of this kind; what is not given is as it usually is."""
    signer = signer or SENDER[kind]
    if kind == Kind.REGISTRY:
        registry = replace(REGISTRY, cipher=context.get("suite", Suite.XCHACHA20).word)
        return Made(sign_registry(registry, signer, federation, fixed("id")[:16]))
    recipients = [i.public for i in (TO[kind] if to is None else to)]
    data = payload(kind) if data is None else data
    usual = {"run": RUN, "epoch": 1, "sequence": 17, "version": 7, "spec": SPEC.digest, "message_id": fixed("id")[:16]}
    if kind in (Kind.HEAD, Kind.COMMAND, Kind.REPLY, Kind.ANSWER, Kind.REQUEST, Kind.GRANT):
        usual = {"sequence": 17, "message_id": fixed("id")[:16]}
    if kind == Kind.CODE:
        usual = {"run": RUN, "sequence": 17, "message_id": fixed("id")[:16]}
    sealer = Sealer(signer, kind, federation=federation, length=len(data), clear=not recipients, **{**usual, **context})
    chunks: list[bytes] = []
    manifest = None
    if data:
        writer = sealer.writer(collected(chunks))
        write_blob(writer, data)
        manifest = writer.finish()
    body = BODIES.get(kind, b"") if body is None else body
    packed = body if isinstance(body, bytes) else encode(body)
    return Made(sealer.finish(packed, recipients, manifest), tuple(chunks))


@dataclass(frozen=True)
class Read:
    """Everything a message said to one reader."""

    sender: str
    core: Any
    manifest: Any
    body: Any
    blob: bytes | None


class RootTrust:
    """The federation's root and nobody else, as `open_registry` trusts it."""

    def signer(self, kid: bytes) -> Participant:
        """The root."""
        return ROOT.public


def read(
    made: Made,
    reader: Identity = AGGREGATOR,
    *,
    trust: Trust = REGISTRY,
    federation: str = FEDERATION,
    kinds: Iterable[Kind] = tuple(Kind),
    verify_chunks: bool = True,
) -> Read:
    """Verify, unlock, decode the body, decrypt the blob: whatever is wrong raises on the way."""
    verified = verify(made.raw, trust, federation=federation, kinds=frozenset(kinds), limit=limits.STORED_RECORD)
    key = unlock(verified, reader) if verified.recipients else None
    said = typed_body(verified, key) if verified.kind in BODY else raw_body(verified, key)
    blob = None
    if verified.manifest is not None and key is not None:
        blob = plaintext(key.reader(verified.manifest), made.chunks, checked=not verify_chunks)
    return Read(verified.sender.name, verified.core, verified.manifest, said, blob)


def parts(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header of an envelope and the core inside it, as plain values."""
    header = msgpack.unpackb(raw[26:-64])
    return header, msgpack.unpackb(header["core"])


def signed(header: Any, *, signer: Identity, kind: int, kid: bytes | None = None) -> bytes:
    """An envelope around any header whatever (bytes, or values to pack), properly framed and signed."""
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    frame = b"FLDG1" + bytes([kind]) + (kid or signer.kid) + len(packed).to_bytes(4, "big") + packed
    return frame + signer.sign.sign(b"fledge/v1/envelope\0" + frame).signature


def changed(
    made: Made, *, signer: Identity | None = None, core: Mapping[str, Any] | None = None, **header: Any
) -> Made:
    """The same message with other values in header or core, signed again by its sender (or by `signer`)."""
    old, old_core = parts(made.raw)
    kind = made.raw[5]
    if core is not None:
        old["core"] = msgpack.packb({**old_core, **core})
    by = signer or next(i for i in PEOPLE.values() if i.kid == made.raw[6:22])
    return replace(made, raw=signed({**old, **header}, signer=by, kind=kind))
