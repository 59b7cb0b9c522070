"""A process that trains a large model of numpy arrays, by itself or as a worker does; prints its peak memory.

python -m tests.support.training_memory plain|worker MIB
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from broker.blobs.chunks import FileChunk


def arrays(mib: int) -> dict[str, np.ndarray]:
    """A model of `mib` MiB: one tensor of half of it, and many small ones."""
    small = {f"layer{i}": np.zeros((256, 1024), np.float32) for i in range(mib // 2)}
    return {"embedding": np.zeros((mib // 2, 262_144), np.float32), **small}


def step(model: dict[str, np.ndarray]) -> None:
    """Train in place, without temporary arrays."""
    for array in model.values():
        array += np.float32(0.25)


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plain(mib: int) -> dict[str, float]:
    """What any script would do."""
    model = arrays(mib)
    step(model)
    return {"peak": peak()}


def worker(mib: int, directory: Path) -> dict[str, float]:
    """The same training within `contribute`, from an encrypted base on the disk to encrypted chunks there."""
    from protocol.blob import CallbackSink
    from protocol.envelope import Sealer
    from protocol.messages import Kind, Named
    from tests.support.training import FEDERATION, SITE, control
    from worker.api.filters import build
    from worker.api.trainer import Control
    from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute
    from worker.trainers.numpy import NumpyTrainer

    model = arrays(mib)

    def fit(control: Control) -> int:
        step(model)
        return 1

    trainer = NumpyTrainer(model, fit, examples=1)
    spec = trainer.spec

    def sealer(kind: Kind, length: int) -> Sealer:
        return Sealer(SITE, kind, federation=FEDERATION, message_id=bytes(16), run="r", spec=spec.digest, length=length)

    def put(name: bytes, chunk: memoryview) -> None:
        (directory / name.hex()).write_bytes(chunk)

    version = sealer(Kind.VERSION, spec.model_length)
    writer = version.writer(CallbackSink(put))
    began = time.monotonic()
    for record in trainer.initial():
        writer.write(record)
    manifest = writer.finish()
    encrypting = time.monotonic() - began

    def base() -> Iterator[memoryview]:
        chunks = (FileChunk(directory / name.hex(), "the base") for name in manifest.chunks)
        return version.key.reader(manifest, proven=True).read(chunks)

    began = time.monotonic()
    for _ in base():
        pass
    decrypting = time.monotonic() - began
    gc.collect()
    began = time.monotonic()
    update, sent = contribute(
        trainer,
        BaseVersion(spec, base),
        Egress(filters=build([Named(name="clip", parameters={"norm": 1.0})])),
        UpdateOutput(sealer(Kind.UPDATE, spec.update_length), CallbackSink(put)),
        control=control(),
    )
    forming = time.monotonic() - began - update.seconds
    assert sent.length == spec.update_length
    return {
        "peak": peak(),
        "bytes": spec.update_length,
        "encrypting": encrypting,
        "decrypting": decrypting,
        "training": update.seconds,
        "forming": forming,
    }


if __name__ == "__main__":
    which, size = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        found = plain(size) if which == "plain" else worker(size, Path(temporary))
    sys.stdout.write(json.dumps(found) + "\n")
