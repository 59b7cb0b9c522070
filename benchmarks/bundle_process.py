"""A process that trains a MONAI bundle, by itself or as a worker does, and prints its peak memory.

    python -m benchmarks.bundle_process alone|fledge BUNDLE DATA EPOCHS

`alone` is what `monai.bundle run` does; nothing of fledge is imported for it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pipeline_model import peak_kib

_QUOTA = 64 << 30


def alone(bundle: Path, data: Path, epochs: int) -> dict[str, Any]:
    """Train with MONAI's own runner of configurations."""
    from monai.bundle.config_parser import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"dataset_dir": str(data), "train#trainer#max_epochs": epochs})
    parser.parse(reset=True)
    parser.get_parsed_content("run")
    network = parser.get_parsed_content("network")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return {"peak_kib": peak_kib(), "model": size}


def fledge(bundle: Path, data: Path, epochs: int, directory: Path) -> dict[str, Any]:
    """Contribute once for each epoch: an encrypted base on the disk, the training, encrypted chunks in the spool."""
    from broker.blobs.chunks import FileChunk
    from protocol.blob import CallbackSink
    from protocol.envelope import Sealer
    from protocol.keys import Identity, Role
    from protocol.messages import Kind, Named
    from worker.api.filters import build
    from worker.api.trainer import Control
    from worker.pipeline.contribute import BaseVersion, Egress, UpdateOutput, contribute
    from worker.storage.spool import Spool
    from worker.trainers.monai_bundle import bundle_trainer

    trainer = bundle_trainer(bundle, dataset_dir=data)
    spec = trainer.spec
    site = Identity.generate("site", Role.SITE)

    def sealer(kind: Kind, length: int) -> Sealer:
        return Sealer(site, kind, federation="f", message_id=bytes(16), run="r", spec=spec.digest, length=length)

    def put(name: bytes, chunk: memoryview) -> None:
        (directory / name.hex()).write_bytes(chunk)

    version = sealer(Kind.VERSION, spec.model_length)
    writer = version.writer(CallbackSink(put))
    for record in trainer.initial():
        writer.write(record)
    manifest = writer.finish()

    def base() -> Iterator[memoryview]:
        chunks = (FileChunk(directory / name.hex(), "the base") for name in manifest.chunks)
        return version.key.reader(manifest, proven=True).read(chunks)

    spool = Spool(directory / "spool", _QUOTA)
    for _ in range(epochs):
        with ThreadPoolExecutor(2) as pool, spool.batch() as batch:
            contribute(
                trainer,
                BaseVersion(spec, base),
                Egress(filters=build([Named(name="clip", parameters={"norm": 1.0})])),
                UpdateOutput(sealer(Kind.UPDATE, spec.update_length), batch.chunks(pool)),
                control=Control(run="r", version=0),
            )
            batch.sync()
    return {"peak_kib": peak_kib(), "model": spec.model_length}


def main() -> None:
    """Train and tell."""
    which, bundle, data, epochs = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory(prefix="fledge-bundle-memory-") as temporary:
        found = alone(bundle, data, epochs) if which == "alone" else fledge(bundle, data, epochs, Path(temporary))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
