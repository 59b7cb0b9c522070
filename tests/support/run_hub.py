"""A federation from memory that takes over runs and gives models out: real envelopes, a real store, no network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from broker.blobs.memory import MemoryBlobs
from fledge.operator.console import Answer
from fledge.operator.members import read_members
from protocol import limits
from protocol.blob import CallbackSink
from protocol.codec import encode
from protocol.envelope import Sealer, body, unlock, verify
from protocol.keys import Identity
from protocol.messages import Bundle, Card, Kind, Measurement
from protocol.topology import bundle_key, model_chunk, record_key
from tests.support.chunks import stored, write_blob
from tests.support.operator_hub import Hub, kit, refused

OFFERED = "e" * 64
"""The record that sites are told to get the code by."""
CARD = Card(
    name="lung",
    publisher="alice",
    published=86400,
    application="lungs",
    description="finds lungs",
    framework="numpy",
    precision="float32",
    licence="CC-BY-4.0",
    labels=("ct", "lung"),
    released=True,
    parameters=7,
    sites=("north", "south"),
    measurements=(Measurement(site="north", examples=9, metrics={"dice": 0.5}),),
)


@dataclass
class Run:
    """One run as the hub has it."""

    code: bytes
    spec: bytes
    model: bytes
    config: bytes
    state: str = "created"
    version: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of its code in hex."""
        return hashlib.sha256(self.code).hexdigest() if self.code else ""


class RunHub(Hub):
    """Obeys what the contract of runs and models says; `runs` is what it has."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.identities: dict[str, Identity] = {}
        self.kit = kit(folder, self.identities)
        members = read_members(folder)
        self.federation, self.registry = members.federation, members.registry
        self.identity = self.identities["alice"]
        self.blobs = MemoryBlobs()
        self.runs: dict[str, Run] = {}
        self.card = CARD
        self.signer = "aggregator"
        self.spoil: str = ""
        self.answers |= {
            "status": self._status,
            "run.list": self._list,
            "run.create": self._create,
            "run.offer": self._offer,
            "run.clone": self._clone,
            "run.delete": self._delete,
            "run.start": partial(self._state, "running"),
            "run.abort": partial(self._state, "aborted"),
            "run.stop": partial(self._state, "stopped"),
            "model.export": self._export,
            "model.card": self._card,
            "site.list": {"site": ("north", "south"), "role": ("site",) * 2, "held": ("ok",) * 2},
        }
        for order in ("run.deploy", "run.join", "run.leave", "run.withdraw"):
            self.answers[order] = self._obeyed

    @contextmanager
    def store(self) -> Iterator[MemoryBlobs]:
        """The store, as the operator may use it."""
        yield self.blobs

    def seal(self, run: str, version: int) -> str:
        """Hold a version ready for alice: the SHA-256 of its card's record."""
        model, aggregator = self.runs[run].model, self.identities[self.signer]
        sealer = Sealer(
            aggregator,
            Kind.CARD,
            federation=self.federation,
            message_id=os.urandom(16),
            run=run,
            version=version,
            length=len(model),
        )
        chunks: dict[str, bytes] = {}
        writer = sealer.writer(CallbackSink(lambda name, chunk: chunks.update({model_chunk(name.hex()): bytes(chunk)})))
        write_blob(writer, model)
        raw = sealer.finish(encode(self.card), [self.identity.public], writer.finish())
        for key, chunk in chunks.items():
            self.blobs.put(key, chunk)
        record = hashlib.sha256(raw).hexdigest()
        self.blobs.put(record_key(record), raw)
        return record

    # ---- orders

    def _create(self, arguments: Mapping[str, Any], sender: str) -> Any:
        name = arguments["run"]
        if name in self.runs:
            return refused("run_exists", "a run of this name is there, or was: names are not used twice")
        raw = self.blobs.get(bundle_key("alice", arguments["record"]), limits.STORED_RECORD)
        verified = verify(raw, self.registry, federation=self.federation, kinds=[Kind.BUNDLE], limit=len(raw))
        key = unlock(verified, self.identities["aggregator"])
        bundle = body(verified, Bundle, key)
        assert verified.core.run == name
        assert verified.manifest is not None
        sent = stored(self.blobs, key.reader(verified.manifest), partial(bundle_key, "alice"))
        at = bundle.code + bundle.spec
        self.runs[name] = Run(sent[: bundle.code], sent[bundle.code : at], sent[at:], bundle.config)
        return self._made(name, len(sent))

    def _made(self, name: str, size: int) -> Mapping[str, Any]:
        run = self.runs[name]
        spec = hashlib.sha256(run.spec).hexdigest()
        return {"run": name, "code": run.digest, "spec": spec, "version": 0, "size": size}

    def _offer(self, arguments: Mapping[str, Any], sender: str) -> Any:
        if (run := self.runs.get(arguments["run"])) is None:
            return refused("unknown_run", "there is no such run; `run list` shows which there are")
        digest = {"code": "f" * 64, "word": "\x1b[2J"}.get(self.spoil, run.digest)
        named = "another" if self.spoil == "run" else arguments["run"]
        return {"run": named, "code": digest, "record": OFFERED if run.code else ""}

    def _clone(self, arguments: Mapping[str, Any], sender: str) -> Any:
        old = self.runs[arguments["run"]]
        self.runs[arguments["as"]] = Run(old.code, old.spec, old.model, old.config)
        return self._made(arguments["as"], len(old.model))

    def _delete(self, arguments: Mapping[str, Any], sender: str) -> Any:
        del self.runs[arguments["run"]]
        return {}

    def _state(self, state: str, arguments: Mapping[str, Any], sender: str) -> Any:
        run = self.runs[arguments.get("run") or next(iter(self.runs))]
        if run.state == state:
            return refused(f"run_{state}", f"the run is {state}")
        if run.state == "aborted" and state == "stopped":
            return refused("run_aborted", "the run is aborted")
        run.state = state
        return {}

    def _list(self, arguments: Mapping[str, Any], sender: str) -> Any:
        runs = self.runs.values()
        columns = {"run": tuple(self.runs), "state": tuple(run.state for run in runs), "reason": ("ok",) * len(runs)}
        return {**columns, "version": tuple(run.version for run in runs), "code": tuple(run.digest for run in runs)}

    def _status(self, arguments: Mapping[str, Any], sender: str) -> Any:
        name = arguments.get("run") or next(iter(self.runs), "-")
        run = self.runs.get(name)
        table = {"site": ("north", "south"), "seen": (3.0, 4.0), "doing": ("idle",) * 2, "run_of": (name,) * 2}
        return {"run": name, "state": run.state if run else "-", "version": run.version if run else -1, **table}

    def _obeyed(self, arguments: Mapping[str, Any], sender: str) -> Answer:
        return Answer(sender=sender, ok=True, reason="ok", text=f"{sender} obeys", values={})

    def _export(self, arguments: Mapping[str, Any], sender: str) -> Any:
        run = arguments.get("run") or next(iter(self.runs))
        return {"record": self.seal(run, arguments.get("version") or 0)}

    def _card(self, arguments: Mapping[str, Any], sender: str) -> Any:
        if arguments["name"] not in ("lung", "production"):
            return refused("unknown_model", "no model was published under this name")
        return {"name": "lung", "record": self.seal(next(iter(self.runs)), 3)}
