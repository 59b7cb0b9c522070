"""What each stage of an update costs beside the plain decryption of the same bytes, in one run on one machine.

    python -m benchmarks.stages --size-mb 840 [--store s3] [--json out/stages.json]

Baseline: the input bytes are read from a directory and decrypted, nothing else. `admission` also fetches through the
cache, hashes ciphertext and plaintext, and looks at every value; `merge` reads the old model, K deltas and the released
average, combines them, and encrypts, hashes and stores the new model and the new average durably.

With `--store s3` everything is done twice, over a directory and over a private S3 server, turn by turn: admission over
S3 is to be compared with admission over the directory plus what reading the bytes from that server takes by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nacl.utils
import numpy as np

from aggregator.pipeline.admission import inspect
from aggregator.pipeline.merge import RELEASED
from aggregator.pipeline.production import Inputs, Production
from aggregator.pipeline.records import Records, state_body, version_body
from aggregator.strategy.plan import Member, MergePlan
from aggregator.strategy.strategies import strategy
from broker.blobs.base import BlobStore
from broker.blobs.cache import CachedBlobs
from broker.blobs.open import open_blobs
from broker.blobs.transfer import ChunkUploads, read_blob
from protocol import limits, topology
from protocol.blob import Manifest
from protocol.codec import encode
from protocol.encodings import DENSE_F32
from protocol.envelope import ContentKey, Sealer, unlock, verify
from protocol.keys import Identity, Participant, Role
from protocol.messages import Kind, Named, Update, Version
from protocol.registry import Registry
from protocol.spec import ModelSpec, TensorKind, TensorSpec, records

FEDERATION, RUN = "benchmark", "stages"


@dataclass(slots=True)
class Blob:
    """A stored blob with what is needed to read it."""

    raw: bytes
    kind: Kind
    key_of: Callable[[str], str]


class Bench:
    """One store with a model, its average and K deltas in it."""

    def __init__(self, url: str, cache: Path, size: int, members: int) -> None:
        self.store: BlobStore = open_blobs(url)
        self.io, self.cipher = ThreadPoolExecutor(4), ThreadPoolExecutor(3)
        self.aggregator = Identity.generate("aggregator", Role.AGGREGATOR)
        self.sites = [Identity.generate(f"site-{i}", Role.SITE) for i in range(members)]
        registry = Registry(version=0, entries=())
        for identity in (self.aggregator, *self.sites):
            registry = registry.with_entry(identity.public)
        self.registry = registry
        layers = max(1, size // (64 << 20))
        shape = (size // 4 // layers,)
        self.spec = ModelSpec(
            tuple(
                TensorSpec(name=f"layer{i}", shape=shape, dtype="F32", kind=TensorKind.PARAMETER) for i in range(layers)
            )
        )
        self._noise = np.random.default_rng(1).standard_normal(limits.RECORD // 4, dtype=np.float32).tobytes()
        self.fresh_cache(cache)
        self.model = self._own(Kind.VERSION, topology.model_chunk)
        self.average = self._own(Kind.STATE, topology.state_chunk)
        self.updates = [self._update(site) for site in self.sites]

    def fresh_cache(self, cache: Path) -> None:
        """Start with an empty cache."""
        shutil.rmtree(cache, ignore_errors=True)
        self.cached = CachedBlobs(self.store, cache, 64 << 30, keep_puts=True)
        self.records = Records(FEDERATION, RUN, self.aggregator, self.cached, self.io)

    def _payload(self, length: int) -> Iterator[bytes]:
        for index in range(records(length)):
            record = (self.spec.header + self._noise)[: limits.RECORD] if index == 0 else self._noise
            yield record[: min(limits.RECORD, length - index * limits.RECORD)]

    def _write(self, sealer: Sealer, key_of: Callable[[str], str], body: bytes, to: list[Participant]) -> bytes:
        uploads = ChunkUploads(self.store, key_of, self.io)
        writer = sealer.writer(uploads.emit)
        for record in self._payload(sealer.core.length):
            writer.write(record)
        uploads.finish()
        return sealer.finish(body, to, writer.finish())

    def _own(self, kind: Kind, key_of: Callable[[str], str]) -> Blob:
        sealer = self.records.sealer(kind, nacl.utils.random(16), self.spec, self.spec.model_length, version=0)
        body = version_body(self.body()) if kind == Kind.VERSION else state_body(RELEASED, 1.0)
        return Blob(self._write(sealer, key_of, body, [self.aggregator.public]), kind, key_of)

    def _update(self, site: Identity) -> Blob:
        sealer = Sealer(
            site,
            Kind.UPDATE,
            federation=FEDERATION,
            message_id=nacl.utils.random(16),
            run=RUN,
            sequence=1,
            spec=self.spec.digest,
            length=self.spec.update_length,
        )
        body = Update(
            encoding=DENSE_F32,
            examples=100,
            steps=10,
            seconds=1.0,
            filters=(Named(name="unsafe-none", parameters={}),),
            trainer="benchmark",
            bundle=None,
            absent=(),
            fingerprint=None,
            metrics={},
        )
        key_of = partial(topology.update_chunk, site.name)
        return Blob(self._write(sealer, key_of, encode(body), [self.aggregator.public]), Kind.UPDATE, key_of)

    def body(self) -> Version:
        """A version record's body."""
        return Version(
            parent=None,
            spec_record=bytes(32),
            updates_per_base=2,
            max_staleness=16,
            evaluate=False,
            task={},
            registry=self.registry.version,
        )

    # ---- the stages; each returns seconds

    def raw_read(self, blob: Blob) -> float:
        """The store's own read of a blob's chunks, ahead of a reader that drops them."""
        manifest = self._open(blob)[0]
        start = time.perf_counter()
        for name in manifest.chunks:
            self.store.get(blob.key_of(name.hex()), limits.CHUNK)
        return time.perf_counter() - start

    def plain(self, blob: Blob, directory: Path) -> float:
        """Read from the store's directory and decrypt, nothing else."""
        manifest, key = self._open(blob)
        reader = key.reader(manifest, digest=False)
        start = time.perf_counter()
        for name in manifest.chunks:
            chunk = (directory / blob.key_of(name.hex())).read_bytes()
            for at in range(0, len(chunk), limits.RECORD + limits.OVERHEAD):
                reader.open(chunk[at : at + limits.RECORD + limits.OVERHEAD])
        return time.perf_counter() - start

    def admission(self, blob: Blob) -> float:
        """The product's admission of one update, with an empty cache."""
        manifest, key = self._open(blob)
        start = time.perf_counter()
        inspect(self.spec, read_blob(self.cached, key.reader(manifest), blob.key_of, pool=self.io, ahead=2))
        return time.perf_counter() - start

    def merge(self) -> float:
        """The product's merge of K admitted updates, with the released average."""
        members = tuple(
            Member(
                id=nacl.utils.random(16),
                order=i,
                site=site.name,
                base_version=0,
                staleness=0,
                staleness_weight=1.0,
                examples=100,
                seconds=1.0,
                example_weight=1.0,
                norm=1.0,
                clip=1.0,
                absent=(),
            )
            for i, site in enumerate(self.sites)
        )
        plan = MergePlan(
            run="run",
            version=2,
            parent=bytes(32),
            strategy="fedbuff",
            parameters={},
            members=members,
            population=(),
            divisor=float(len(members)),
            rate=1.25,
            release_decay=0.5,
            ids=(nacl.utils.random(16), nacl.utils.random(16)),
            registry=self.registry.version,
        )
        inputs = Inputs(
            parent=self.model.raw,
            states={RELEASED: self.average.raw},
            envelopes=[update.raw for update in self.updates],
            registry=self.registry,
            body=self.body(),
        )
        production = Production(self.records, self.spec, strategy("fedbuff"), self.cipher, average=True)
        start = time.perf_counter()
        production.produce(plan, inputs)
        return time.perf_counter() - start

    def warm(self) -> None:
        """Bring the model and its average into the cache, where a running aggregator has them."""
        for blob in (self.model, self.average):
            opened = self.records.open(blob.raw, self.registry, blob.kind)
            for _ in self.records.read(opened.blob, blob.key_of, digest=True):
                pass

    def _open(self, blob: Blob) -> tuple[Manifest, ContentKey]:
        verified = verify(blob.raw, self.registry, federation=FEDERATION, kinds={blob.kind}, limit=limits.STORED_RECORD)
        if verified.manifest is None:
            raise SystemExit("the benchmark made a message without a blob")
        return verified.manifest, unlock(verified, self.aggregator)


def measure(size_mb: int, members: int, store: str, rounds: int) -> dict[str, float]:
    """Run all stages and return seconds (medians over `rounds`) and ratios."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fledge-stages-")))
        local = Bench(f"file://{work}/store", work / "cache", size_mb * 1_000_000, members)
        remote = None
        if store == "s3":
            from tests.support.s3 import S3Server

            server = S3Server(work / "objects", work / "log")
            stack.callback(server.stop)
            remote = Bench(server.url("stages"), work / "cache-s3", size_mb * 1_000_000, members)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            _round(local, work / "cache", "", times, plain=work / "store")
            if remote is not None:
                _round(remote, work / "cache-s3", " s3", times)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {name: statistics.median(values) for name, values in times.items()}
        result["admission / plain"] = _ratio(times, lambda t: t["admission"] / t["plain"])
        result["merge / plain"] = _ratio(times, lambda t: t["merge"] / (t["plain"] * (members + 2)))
        if remote is not None:
            result["admission s3 / (admission + raw s3)"] = _ratio(
                times, lambda t: t["admission s3"] / (t["admission"] + t["raw s3"])
            )
        result["memory MiB"] = (peak - before) / 1024
        return result


def _round(bench: Bench, cache: Path, suffix: str, times: dict[str, list[float]], plain: Path | None = None) -> None:
    """Time every stage once over one store."""
    bench.fresh_cache(cache)

    def note(stage: str, seconds: float) -> None:
        times.setdefault(stage + suffix, []).append(seconds)

    if plain is not None:
        blobs = [bench.model, bench.average, *bench.updates]
        note("plain", statistics.mean(bench.plain(blob, plain) for blob in blobs))
    note("raw", statistics.mean(bench.raw_read(blob) for blob in bench.updates))
    note("admission", statistics.mean(bench.admission(blob) for blob in bench.updates))
    bench.warm()
    note("merge", bench.merge())


def _ratio(times: dict[str, list[float]], of: Callable[[dict[str, float]], float]) -> float:
    """The median over rounds of a ratio within one round: what else runs on the machine weighs on both sides."""
    rounds = len(times["plain"])
    return statistics.median(of({name: values[i] for name, values in times.items()}) for i in range(rounds))


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=200)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--store", choices=("file", "s3"), default="file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.size_mb, options.members, options.store, options.rounds)
    print(f"{options.size_mb} MB model, K = {options.members}, {options.store} store, median of {options.rounds}")
    print(f"load average {os.getloadavg()[0]:.2f}")
    print("plain, raw, admission: seconds a blob; merge: seconds a version; ratios: to decryption of the same bytes")
    for name, value in result.items():
        print(f"  {name:36s} {value:8.3f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**vars(options), "json": None, "result": result}, indent=2))


if __name__ == "__main__":
    main()
