"""What one pass over the bytes costs here and now: the library calls alone, into buffers that are used again.

Every call handles one record of 1 MiB, so that what it reads and writes stays in the processor's cache, as in a stream
that goes record by record. Nothing of the product is timed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

# Importing the bindings initialises libsodium; without that it runs slow portable code and says nothing.
import nacl.bindings as sodium
import numpy as np
from nacl._sodium import ffi, lib

from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import parse_s3_url
from protocol import limits, topology

Call = Callable[[], object]
GB = 1e9
_MIB = 1 << 20
_ROUNDS = 3
_WRITTEN = 16
"""How many times the bytes of the other calls are written, and once more as many before that."""
_TRANSFERS = 4
"""Objects under way at once, as in the product's pools."""
_BLOCK = 32_768
"""Elements that the merge adds up at a time."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one GB."""

    seconds: float
    cpu: float
    """CPU seconds."""


Prices = Mapping[str, Cost]
"""What a pass through each primitive costs; the names are those of `floor.Passes`."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A cipher of records, and what goes with it."""

    name: str
    overhead: int
    """Bytes that a record grows by."""
    update_digest: bool
    """Whether a hash of the plaintext proves it, beside the names of the chunks: what is only read has it compared."""
    calls: Callable[[Buffers], tuple[Call, Call]]
    """Makes the calls that encrypt the record, and decrypt it again."""


class Buffers:
    """What the calls read and write, again and again."""

    def __init__(self, overhead: int) -> None:
        self.record = np.random.default_rng(1).standard_normal(limits.RECORD // 4, dtype=np.float32)
        self.out = np.zeros_like(self.record)
        self.sealed = bytearray(limits.RECORD + overhead)


def measure(directory: Path, suite: Suite, *, url: str | None = None, size: int = 64 * _MIB) -> Prices:
    """Time each primitive with `size` bytes, three times, and keep the least of each; files are written once, but more.

    `directory`: on the disk that stages write to. `url`: of a remote store, whose own time is measured too.
    """
    buffers = Buffers(suite.overhead)
    encrypt, decrypt = suite.calls(buffers)
    encrypt()
    number = max(1, size // limits.RECORD)
    calls = {"encrypt": encrypt, "decrypt": decrypt, "hash": _hash(buffers), **_arithmetic(buffers)}
    prices = {name: _cost(call, number) for name, call in calls.items()}
    chunks = max(1, number // limits.RECORDS_PER_CHUNK)
    with _file(directory, buffers, chunks) as read:
        prices["read"] = _cost(read, chunks, limits.CHUNK)
    for name, durable in (("write", True), ("keep", False)):
        with _files(directory / name, buffers, durable=durable) as write:
            _cost(write, _WRITTEN * chunks, limits.CHUNK, rounds=1)  # which takes up what was freed just now
            prices[name] = _cost(write, _WRITTEN * chunks, limits.CHUNK, rounds=1)
    if url is not None:
        prices |= _transfers(url, max(_TRANSFERS, chunks))
    return prices


def _cost(call: Call, count: int, size: int = limits.RECORD, *, rounds: int = _ROUNDS) -> Cost:
    call()
    wall, cpu = [], []
    for _ in range(rounds):
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
    return Cost(min(wall) / (count * size) * GB, min(cpu) / (count * size) * GB)


# ---- ciphers


def _secretstream(buffers: Buffers) -> tuple[Call, Call]:
    key, associated = bytes(32), bytes(40)
    state = ffi.new("unsigned char[]", sodium.crypto_secretstream_xchacha20poly1305_STATEBYTES)
    header = ffi.new("unsigned char[]", sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES)
    tag = ffi.new("unsigned char *")
    plain, sealed, out = _views(buffers)

    def encrypt() -> None:
        lib.crypto_secretstream_xchacha20poly1305_init_push(state, header, key)
        _done(
            lib.crypto_secretstream_xchacha20poly1305_push(
                state, sealed, ffi.NULL, plain, limits.RECORD, associated, len(associated), 0
            )
        )

    def decrypt() -> None:
        lib.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
        _done(
            lib.crypto_secretstream_xchacha20poly1305_pull(
                state, out, ffi.NULL, tag, sealed, len(buffers.sealed), associated, len(associated)
            )
        )

    return encrypt, decrypt


def _aegis256(buffers: Buffers) -> tuple[Call, Call]:
    key, nonce, associated = bytes(32), bytes(32), bytes(40)
    plain, sealed, out = _views(buffers)

    def encrypt() -> None:
        _done(
            lib.crypto_aead_aegis256_encrypt(
                sealed, ffi.NULL, plain, limits.RECORD, associated, len(associated), ffi.NULL, nonce, key
            )
        )

    def decrypt() -> None:
        _done(
            lib.crypto_aead_aegis256_decrypt(
                out, ffi.NULL, ffi.NULL, sealed, len(buffers.sealed), associated, len(associated), nonce, key
            )
        )

    return encrypt, decrypt


def _views(buffers: Buffers) -> tuple[Any, Any, Any]:
    """The buffers as C sees them; it checks no lengths."""
    return (
        ffi.from_buffer(buffers.record),
        ffi.from_buffer(buffers.sealed, require_writable=True),
        ffi.from_buffer(buffers.out, require_writable=True),
    )


def _done(code: int) -> None:
    if code != 0:
        raise RuntimeError("libsodium refuses the benchmark's own record")


XCHACHA20 = Suite("xchacha20", limits.OVERHEAD, True, _secretstream)
AEGIS256 = Suite("aegis256", 32, False, _aegis256)
SUITES = {suite.name: suite for suite in (XCHACHA20, AEGIS256)}


# ---- hash and arithmetic


def _hash(buffers: Buffers) -> Call:
    running, record = hashlib.sha256(), memoryview(buffers.record)
    return lambda: running.update(record)


def _arithmetic(buffers: Buffers) -> dict[str, Call]:
    record, out = buffers.record, buffers.out
    wide, spare, total = np.empty(record.size), np.empty(_BLOCK), np.empty(_BLOCK)
    finite = np.empty(record.size, np.bool_)
    parts = [slice(start, start + _BLOCK) for start in range(0, record.size, _BLOCK)]

    def copy() -> None:
        np.copyto(out, record)

    def norm() -> None:
        np.copyto(wide, record)
        np.einsum("i,i->", wide, wide)

    def subtract() -> None:
        np.subtract(record, out, out=out)
        np.isfinite(out, out=finite).all()

    def axpy() -> None:
        for part in parts:
            np.multiply(record[part], 0.25, out=spare, dtype=np.float64)
            np.add(total, spare, out=total)

    def average() -> None:
        for part in parts:
            np.multiply(record[part], 0.8, out=total, dtype=np.float64)
            np.multiply(out[part], 0.2, out=spare, dtype=np.float64)
            np.add(total, spare, out=out[part], casting="same_kind")

    total[:] = 0.0
    return {"copy": copy, "norm": norm, "subtract": subtract, "axpy": axpy, "average": average}


# ---- files and objects


@contextmanager
def _file(directory: Path, buffers: Buffers, chunks: int) -> Iterator[Call]:
    """A call that reads the next chunk of a file from the page cache, record by record, and begins anew at its end."""
    path = directory / "floor-read"
    with path.open("wb") as file:
        for _ in range(chunks * limits.RECORDS_PER_CHUNK):
            file.write(buffers.sealed)
    step = len(buffers.sealed)
    target = bytearray(step)
    starts = cycle(range(0, chunks * limits.RECORDS_PER_CHUNK * step, step))
    descriptor = os.open(path, os.O_RDONLY)

    def read() -> None:
        for start in islice(starts, limits.RECORDS_PER_CHUNK):
            os.preadv(descriptor, [target], start)

    try:
        yield read
    finally:
        os.close(descriptor)
        path.unlink()


@contextmanager
def _files(folder: Path, buffers: Buffers, *, durable: bool) -> Iterator[Call]:
    """A call that writes a new file of one chunk, and syncs it if `durable`.

    The files stay until the end, as those of a stage do: pages just freed are cheap to write, but a virtual machine
    gets others from its host one by one: 2.5 s of the kernel for a GB on one machine, and 0.25 s in pages just freed.
    """
    folder.mkdir()
    names = count()

    def write() -> None:
        descriptor = os.open(folder / str(next(names)), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for _ in range(limits.RECORDS_PER_CHUNK):
                os.write(descriptor, buffers.sealed)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    try:
        yield write
    finally:
        shutil.rmtree(folder)


class _Bare:
    """A remote store by signed addresses, on a bare connection for each thread; nothing is hashed."""

    def __init__(self, url: str) -> None:
        self._where = parse_s3_url(url, environ={})
        self._chunk = os.urandom(limits.CHUNK)
        self._mine = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def send(self, method: str, address: str) -> None:
        """Put or get one chunk."""
        if not hasattr(self._mine, "into"):
            self._mine.line, self._mine.into = self._connect(), memoryview(bytearray(limits.CHUNK))
        line, into = self._mine.line, self._mine.into
        path = address.partition(self._where.endpoint)[2]
        if method == "PUT":
            line.request(method, path, body=memoryview(self._chunk), headers={"Content-Length": str(limits.CHUNK)})
        else:
            line.request(method, path)
        answer, got = line.getresponse(), 0
        while more := answer.readinto(into[got:]):
            got += more
        if answer.status != 200 or (method == "GET" and got != limits.CHUNK):
            raise SystemExit(f"the store answers {answer.status} and {got} bytes to a bare {method}")

    def close(self) -> None:
        """Close all connections."""
        for line in self._opened:
            line.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._where.host, self._where.port
        if self._where.encrypted:
            line = http.client.HTTPSConnection(host, port, context=self._where.files.context("a benchmark"))
        else:
            line = http.client.HTTPConnection(host, port)
        self._opened.append(line)
        return line


def _transfers(url: str, number: int) -> dict[str, Cost]:
    """A remote store's own raw time: chunks put and got, several at once."""
    keys = [topology.update_chunk("floor", secrets.token_hex(32)) for _ in range(number)]
    first = topology.update_chunk("floor", hashlib.sha256(b"first").hexdigest())
    with (
        closing(S3Blobs.from_url(url)) as store,
        closing(_Bare(url)) as bare,
        ThreadPoolExecutor(_TRANSFERS) as pool,
    ):
        store.put(first, b"first")  # which makes the bucket
        costs = {}
        for method, sign in (("PUT", store.presign_put), ("GET", store.presign_get)):
            call = partial(_all, pool, partial(bare.send, method), [sign(key, 600) for key in keys])
            costs[method.lower()] = _cost(call, 1, number * limits.CHUNK)
        for key in (first, *keys):
            store.delete(key)
    return costs


def _all(pool: ThreadPoolExecutor, send: Callable[[str], None], addresses: Sequence[str]) -> None:
    list(pool.map(send, addresses))
