"""Makes the golden files: `python -m tests.golden.make` from the repository's root, once for each wire version.

Keys and contents are the fixed ones of `tests/support/wire.py`; content keys and stream headers are random, which is
why the files are kept and not made anew. A file that exists is never overwritten: from the first release on, what
stands here was written by a version that somebody runs. New kinds of message and new attacks are added by running this
again; whatever is there stays as it is.

v1/<name>.identity        key files
v1/registry.bin           the root-signed registry
v1/model.spec             a model specification; model.header is the payload header that follows from it
v1/<kind>.bin             an envelope; <kind>.chunk is its blob's only chunk; <kind>.txt is what it says
v1/large.bin              a blob of three chunks: the envelope alone, its chunks are made again from the key inside
v1/<…>.aegis256.<…>       the same in the second suite: messages with a blob, and a registry that asks for it
attacks/<reason>--<what>  what has to be refused with that reason; with its chunks, if any, behind it
SHA256SUMS                of all of them; `sha256sum --check` reads it
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import msgpack

from protocol.cipher import Suite
from protocol.keys import Identity
from protocol.messages import Kind
from tests.support.hostile import attacks
from tests.support.wire import (
    AGGREGATOR,
    BLOBS,
    OPERATOR,
    PEOPLE,
    REGISTRY,
    SITE_A,
    SPEC,
    Made,
    Read,
    RootTrust,
    make,
    pattern,
    read,
)

HERE = Path(__file__).parent
V1 = HERE / "v1"
ATTACKS = HERE / "attacks"
LARGE = 16 * 2**20 + 1
"""Two whole chunks and one byte."""


GOLDEN = [(kind, Suite.XCHACHA20) for kind in Kind] + [
    (kind, Suite.AEGIS256) for kind in Kind if kind in BLOBS | {Kind.REGISTRY}
]
"""What there is a message of."""


def file_name(what: str, suite: Suite, ending: str) -> str:
    """What a file is called; those of the first suite are older than suites."""
    return f"{what}.{ending}" if suite is Suite.XCHACHA20 else f"{what}.{suite.word}.{ending}"


def reader_of(kind: Kind) -> Identity:
    """Who opens the golden message of this kind."""
    if kind == Kind.ANSWER:
        return OPERATOR
    return SITE_A if kind in (Kind.RECEIPT, Kind.VERSION, Kind.GRANT, Kind.CODE, Kind.CARD) else AGGREGATOR


def golden_read(kind: Kind, made: Made) -> Read:
    """Everything the golden message of this kind says."""
    return read(made, reader_of(kind), trust=RootTrust() if kind == Kind.REGISTRY else REGISTRY)


def described(said: Read) -> str:
    """What is compared: every value, in the words of this version."""
    lines = (f"sender: {said.sender}", said.core, said.manifest, said.body, said.blob)
    return "".join(f"{_words(line)}\n" for line in lines)


def _words(value: Any) -> str:
    """As `repr`, but without fields that an older writer left out because they were not there yet."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_words, value))}{',' if len(value) == 1 else ''})"
    if not is_dataclass(value):
        return repr(value)
    shown = ((field, getattr(value, field.name)) for field in fields(value) if field.repr)
    said = (f"{field.name}={_words(it)}" for field, it in shown if it != field.default)
    return f"{type(value).__qualname__}({', '.join(said)})"


def pack(made: Made) -> bytes:
    """An attack's envelope and chunks in one file."""
    packed: bytes = msgpack.packb([made.raw, *made.chunks])
    return packed


def unpack(raw: bytes) -> Made:
    """What `pack` packed."""
    envelope, *chunks = msgpack.unpackb(raw)
    return Made(envelope, tuple(chunks))


def keep(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet; False if it is."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def note() -> None:
    """Add the files that are not in the list yet; a line that stands there is never changed."""
    path = V1.parent / "SHA256SUMS"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    listed = {line[66:] for line in lines}
    for file in sorted([*V1.iterdir(), *ATTACKS.iterdir()]):
        name = f"{file.parent.name}/{file.name}"
        if name not in listed:
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Add what is missing."""
    V1.mkdir(exist_ok=True)
    ATTACKS.mkdir(exist_ok=True)
    for name, person in PEOPLE.items():
        keep(V1 / f"{name}.identity", person.to_bytes())
    keep(V1 / "model.spec", SPEC.to_bytes())
    keep(V1 / "model.header", SPEC.header)
    for kind, suite in GOLDEN:
        made, what = make(kind, suite=suite), kind.name.lower()
        if keep(V1 / file_name(what, suite, "bin"), made.raw):
            for chunk in made.chunks:
                keep(V1 / file_name(what, suite, "chunk"), chunk)
            keep(V1 / file_name(what, suite, "txt"), described(golden_read(kind, made)).encode())
    for suite in Suite:
        keep(V1 / file_name("large", suite, "bin"), make(Kind.STATE, data=pattern(LARGE), suite=suite).raw)
    for name, attack in attacks().items():
        keep(ATTACKS / name, pack(attack))
    note()


if __name__ == "__main__":
    main()
