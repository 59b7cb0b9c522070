"""This version reads, byte for byte, what earlier versions wrote."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from protocol import limits
from protocol.blob import BlobWriter
from protocol.cipher import opening
from protocol.envelope import unlock, verify
from protocol.keys import Identity
from protocol.messages import Kind
from protocol.registry import open_registry
from protocol.spec import ModelSpec
from tests.golden import make
from tests.golden.make import LARGE, V1, described, golden_read, keep, reader_of
from tests.support.chunks import collected, plaintext
from tests.support.wire import AGGREGATOR, FEDERATION, PEOPLE, REGISTRY, ROOT, SPEC, Made, pattern, write_blob


def stored(kind: Kind) -> Made:
    """The golden message of a kind."""
    chunk = V1 / f"{kind.name.lower()}.chunk"
    return Made((V1 / f"{kind.name.lower()}.bin").read_bytes(), (chunk.read_bytes(),) if chunk.exists() else ())


@pytest.mark.parametrize("kind", Kind)
def test_a_message_says_what_it_said_when_it_was_written(kind: Kind) -> None:
    expected = (V1 / f"{kind.name.lower()}.txt").read_text(encoding="utf-8")
    assert described(golden_read(kind, stored(kind))) == expected


@pytest.mark.parametrize("kind", set(Kind) - {Kind.HEAD, Kind.REGISTRY, Kind.ATTESTATION, Kind.CHECKPOINT})
def test_the_stored_key_files_open_the_stored_messages(kind: Kind) -> None:
    raw = (V1 / f"{reader_of(kind).name}.identity").read_bytes()
    identity = Identity.from_bytes(raw)
    verified = verify(stored(kind).raw, REGISTRY, federation=FEDERATION, kinds={kind})
    assert unlock(verified, identity).secret == unlock(verified, reader_of(kind)).secret


@pytest.mark.parametrize("name", PEOPLE)
def test_a_key_file_is_written_as_it_was_read(name: str) -> None:
    raw = (V1 / f"{name}.identity").read_bytes()
    identity = Identity.from_bytes(raw)
    assert identity.to_bytes() == raw
    assert identity.public == PEOPLE[name].public


def test_the_registry_still_names_the_same_members() -> None:
    assert open_registry(stored(Kind.REGISTRY).raw, ROOT.public.verify_key, FEDERATION) == REGISTRY


def test_a_specification_has_the_same_bytes_digest_and_layout_for_ever() -> None:
    raw = (V1 / "model.spec").read_bytes()
    spec = ModelSpec.from_bytes(raw)
    assert spec == SPEC
    assert spec.to_bytes() == raw
    assert spec.header == (V1 / "model.header").read_bytes()
    assert spec.digest.hex() == "90a72683e024741c37400f6683fdea8fb7f6bba68051d16f18190a7d8c71709d"


def test_a_blob_of_three_chunks_is_still_cut_encrypted_and_named_in_the_same_way() -> None:
    verified = verify((V1 / "large.bin").read_bytes(), REGISTRY, federation=FEDERATION, kinds={Kind.STATE})
    manifest = verified.manifest
    assert manifest is not None
    assert (manifest.length, len(manifest.chunks)) == (LARGE, 3)
    key = unlock(verified, AGGREGATOR)
    chunks: list[bytes] = []
    cipher = opening(manifest.stream, key.secret, key.associated)  # in this suite both directions begin alike
    writer = BlobWriter(cipher, manifest.stream, LARGE, collected(chunks), digest=True)
    write_blob(writer, pattern(LARGE))
    assert writer.finish() == manifest
    assert [hashlib.sha256(chunk).digest() for chunk in chunks] == list(manifest.chunks)
    assert [len(chunk) for chunk in chunks] == [manifest.chunk_size(0)] * 2 + [1 + limits.OVERHEAD]
    assert plaintext(key.reader(manifest), chunks) == pattern(LARGE)


def test_a_changed_golden_file_would_be_noticed() -> None:
    made = stored(Kind.UPDATE)
    assert described(golden_read(Kind.UPDATE, made)) != described(
        replace(golden_read(Kind.UPDATE, made), blob=b"something else")
    )


def test_making_the_files_again_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "V1", tmp_path / "v1")
    monkeypatch.setattr(make, "ATTACKS", tmp_path / "attacks")
    make.main()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in [*V1.iterdir(), *(V1.parent / "attacks").iterdir()]}
    make.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_golden_file_is_never_overwritten(tmp_path: Path) -> None:
    assert keep(tmp_path / "update.bin", b"old")
    assert not keep(tmp_path / "update.bin", b"new")
    assert (tmp_path / "update.bin").read_bytes() == b"old"
