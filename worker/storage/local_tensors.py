"""What a site keeps to itself: its own values of excluded tensors and of those that are not floating.

They outlive the process in one file per run, encrypted and sealed for the site alone: the chunks of a blob, then the
envelope that names them, then the envelope's length in four bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from broker.runtime.folders import private_folder, sync_folder
from protocol import limits
from protocol.blob import CallbackSink, HeldChunk, Manifest
from protocol.cipher import Octets
from protocol.envelope import ContentKey, Sealer, unlock, verify
from protocol.errors import DiskFull, StateError, TrainingError, Untrusted, WireError
from protocol.keys import Identity, Participant, Role
from protocol.messages import Kind
from protocol.spec import OTHERS, ModelSpec, TensorKind, TensorSpec
from worker.api.weights import Array, OwnValues, write_records

_UNSENT = bytes(16)
"""The message id of what is never sent."""
_LENGTH = 4


class LocalTensors:
    """The site's own values, by run. One training at a time; memory holds none of them between calls."""

    def __init__(self, directory: Path, identity: Identity, federation: str) -> None:
        """`directory` is made when there is something to keep."""
        self._directory = directory
        self._identity = identity
        self._federation = federation

    def values(self, run: str, spec: ModelSpec, names: frozenset[str]) -> OwnValues | None:
        """What was last saved of these tensors; None before the first time.

        Raises:
            StateError: the file is damaged or was sealed for another key.
        """
        path = self._path(run)
        try:
            with path.open("rb") as file:
                opened = self._open(file, run)
                stored = _stored_spec(opened.read(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, WireError) as error:
            raise self._unusable(path, error) from error
        shapes = {tensor.name: tensor.shape for tensor in stored.tensors}
        usable = frozenset(t.name for t in spec.tensors if t.name in names and shapes.get(t.name) == t.shape)
        return OwnValues(spec=stored, names=usable, records=lambda: self._records(path, run))

    def save(self, run: str, spec: ModelSpec, names: frozenset[str], arrays: Mapping[str, Array]) -> None:
        """Keep the values of these tensors, of those that `arrays` has; replaces what was kept before.

        Raises:
            TrainingError: a value is not finite.
            DiskFull, StateError: the file cannot be written; the one before stays.
        """
        kept = tuple(_plain(tensor) for tensor in spec.tensors if tensor.name in names and tensor.name in arrays)
        if not kept:
            return
        path = self._path(run)
        temporary = path.with_suffix(".new")
        try:
            private_folder(self._directory)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                self._write(file, run, ModelSpec(kept), arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(self._directory)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = DiskFull if full else StateError
            raise kind(f"the site's own tensors cannot be kept in {self._directory}: {error.strerror}") from error
        except TrainingError:
            temporary.unlink(missing_ok=True)
            raise

    def forget(self, run: str) -> None:
        """Delete what is kept for a run."""
        self._path(run).unlink(missing_ok=True)

    def _write(self, file: IO[bytes], run: str, spec: ModelSpec, arrays: Mapping[str, Array]) -> None:
        sealer = Sealer(
            self._identity,
            Kind.STATE,
            federation=self._federation,
            message_id=_UNSENT,
            run=run,
            spec=spec.digest,
            length=spec.model_length,
        )
        writer = sealer.writer(CallbackSink(lambda _name, chunk: file.write(chunk)))
        for record in write_records(spec, arrays.__getitem__):
            writer.write(record)
        envelope = sealer.finish(b"", [self._identity.public], writer.finish())
        file.write(envelope + len(envelope).to_bytes(_LENGTH, "big"))

    def _records(self, path: Path, run: str) -> Iterator[memoryview]:
        try:
            with path.open("rb") as file:
                yield from self._open(file, run).read(file)
        except (OSError, ValueError, WireError) as error:
            raise self._unusable(path, error) from error

    def _open(self, file: IO[bytes], run: str) -> _Opened:
        """Read the envelope at the file's end and go back to its start."""
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LENGTH))
        length = int.from_bytes(file.read(_LENGTH), "big")
        if not 0 < length <= min(limits.STORED_RECORD, end - _LENGTH):
            raise ValueError("the file is cut short")
        file.seek(end - _LENGTH - length)
        raw = file.read(length)
        verified = verify(
            raw, _Own(self._identity), federation=self._federation, kinds={Kind.STATE}, limit=limits.STORED_RECORD
        )
        if verified.core.run != run or verified.manifest is None:
            raise ValueError("the file belongs to another run")
        file.seek(0)
        return _Opened(verified.manifest, unlock(verified, self._identity))

    def _path(self, run: str) -> Path:
        return self._directory / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.own"

    def _unusable(self, path: Path, error: Exception) -> StateError:
        return StateError(
            f"the site's own tensors in {path} cannot be read ({error}); "
            "delete the file to begin again with the values of the run's current version"
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    manifest: Manifest
    key: ContentKey

    def read(self, file: IO[bytes]) -> Iterator[memoryview]:
        chunks = (file.read(self.manifest.chunk_size(index)) for index in range(len(self.manifest.chunks)))
        # Every record is authenticated on its own: hashing the chunks as well would show nothing more.
        return self.key.reader(self.manifest, proven=True).read(map(HeldChunk, chunks))


class _Own:
    """Trusts the site's own key, and to sign state: what it keeps for itself, as the aggregator does for itself."""

    def __init__(self, identity: Identity) -> None:
        self._own = replace(identity.public, role=Role.AGGREGATOR)

    def signer(self, kid: bytes) -> Participant:
        if kid != self._own.kid:
            raise Untrusted("the file was written under another key")
        return self._own


def _plain(tensor: TensorSpec) -> TensorSpec:
    """The tensor as a payload's header tells it, which is all that is needed to read it back."""
    if tensor.kind == TensorKind.OTHER:
        return tensor
    return replace(tensor, dtype="F32", kind=TensorKind.PARAMETER)


def _stored_spec(records: Iterator[Octets]) -> ModelSpec:
    head = bytearray(next(records))
    length = 8 + int.from_bytes(head[:8], "little")
    while len(head) < length:
        head += next(records)
    entries = json.loads(head[8:length])
    return ModelSpec(
        tuple(
            TensorSpec(
                name=name,
                shape=tuple(entry["shape"]),
                dtype=entry["dtype"],
                kind=TensorKind.OTHER if entry["dtype"] in OTHERS else TensorKind.PARAMETER,
            )
            for name, entry in entries.items()
        )
    )
