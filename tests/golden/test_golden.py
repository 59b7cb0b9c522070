"""This version reads, byte for byte, what earlier versions wrote."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import nacl.bindings
import nacl.public
import pytest

from protocol.blob import BlobWriter
from protocol.cipher import Suite, opening
from protocol.envelope import unlock, verify
from protocol.keys import Identity
from protocol.messages import Kind
from protocol.registry import open_registry
from protocol.spec import ModelSpec
from tests.golden import make
from tests.golden.make import ATTACKS, GOLDEN, LARGE, V1, described, file_name, golden_read, keep, reader_of
from tests.support.chunks import collected, plaintext, write_blob
from tests.support.wire import (
    AGGREGATOR,
    BLOBS,
    FEDERATION,
    PEOPLE,
    REGISTRY,
    ROOT,
    SPEC,
    TO,
    Made,
    parts,
    pattern,
    payload,
)

SUMS = V1.parent / "SHA256SUMS"


SUITES = pytest.mark.parametrize("suite", Suite)


def stored(kind: Kind, suite: Suite = Suite.XCHACHA20) -> Made:
    """The golden message of a kind."""
    chunk = V1 / file_name(kind.name.lower(), suite, "chunk")
    raw = (V1 / file_name(kind.name.lower(), suite, "bin")).read_bytes()
    return Made(raw, (chunk.read_bytes(),) if chunk.exists() else ())


@pytest.mark.parametrize(("kind", "suite"), GOLDEN)
def test_a_message_says_what_it_said_when_it_was_written(kind: Kind, suite: Suite) -> None:
    expected = (V1 / file_name(kind.name.lower(), suite, "txt")).read_text(encoding="utf-8")
    assert described(golden_read(kind, stored(kind, suite))) == expected


@pytest.mark.parametrize(("kind", "suite"), [(kind, suite) for kind, suite in GOLDEN if TO[kind]])
def test_the_stored_key_files_open_the_stored_messages(kind: Kind, suite: Suite) -> None:
    raw = (V1 / f"{reader_of(kind).name}.identity").read_bytes()
    identity = Identity.from_bytes(raw)
    verified = verify(stored(kind, suite).raw, REGISTRY, federation=FEDERATION, kinds={kind})
    assert unlock(verified, identity).secret == unlock(verified, reader_of(kind)).secret


@pytest.mark.parametrize("kind", sorted(BLOBS))
def test_a_golden_record_of_the_second_suite_opens_by_the_specification_and_pynacl_alone(kind: Kind) -> None:
    made, recipient = stored(kind, Suite.AEGIS256), reader_of(kind)
    header, core = parts(made.raw)
    bound = hashlib.sha256(b"fledge/v1/core\0" + header["core"]).digest()
    wrap = header["wraps"][header["to"].index(recipient.box_kid)]
    opened = nacl.public.SealedBox(recipient.box).decrypt(wrap)
    assert opened[32:] == bound
    assert (core["stream"][0], len(core["stream"])) == (2, 25)
    key = hmac.new(opened[:32], b"fledge/v2/aegis-256\0" + bound, hashlib.sha256).digest()
    nonce = core["stream"][1:] + bytes(4) + b"\0\0\0\1"
    plain = nacl.bindings.crypto_aead_aegis256_decrypt(made.chunks[0], bound + bytes(8), nonce, key)
    assert plain == payload(kind)
    assert header["chunks"] == [hashlib.sha256(made.chunks[0]).digest()]
    without = kind in (Kind.UPDATE, Kind.STATE)
    assert header["digest"] == (b"" if without else hashlib.sha256(plain).digest())


@pytest.mark.parametrize("name", PEOPLE)
def test_a_key_file_is_written_as_it_was_read(name: str) -> None:
    raw = (V1 / f"{name}.identity").read_bytes()
    identity = Identity.from_bytes(raw)
    assert identity.to_bytes() == raw
    assert identity.public == PEOPLE[name].public


def test_the_registry_still_names_the_same_members() -> None:
    for suite in Suite:
        read = open_registry(stored(Kind.REGISTRY, suite).raw, ROOT.public.verify_key, FEDERATION)
        assert (read.suite, replace(read, cipher=REGISTRY.cipher)) == (suite, REGISTRY)


def test_a_specification_has_the_same_bytes_digest_and_layout_for_ever() -> None:
    raw = (V1 / "model.spec").read_bytes()
    spec = ModelSpec.from_bytes(raw)
    assert spec == SPEC
    assert spec.to_bytes() == raw
    assert spec.header == (V1 / "model.header").read_bytes()
    assert spec.digest.hex() == "90a72683e024741c37400f6683fdea8fb7f6bba68051d16f18190a7d8c71709d"


@SUITES
def test_a_blob_of_three_chunks_is_still_cut_encrypted_and_named_in_the_same_way(suite: Suite) -> None:
    raw = (V1 / file_name("large", suite, "bin")).read_bytes()
    verified = verify(raw, REGISTRY, federation=FEDERATION, kinds={Kind.STATE})
    manifest = verified.manifest
    assert manifest is not None
    assert (manifest.suite, manifest.length, len(manifest.chunks)) == (suite, LARGE, 3)
    key = unlock(verified, AGGREGATOR)
    chunks: list[bytes] = []
    cipher = opening(manifest.stream, key.secret, key.associated)  # in these suites both directions begin alike
    writer = BlobWriter(cipher, manifest.stream, LARGE, collected(chunks), digest=suite is Suite.XCHACHA20)
    write_blob(writer, pattern(LARGE))
    assert writer.finish() == manifest
    assert [hashlib.sha256(chunk).digest() for chunk in chunks] == list(manifest.chunks)
    assert [len(chunk) for chunk in chunks] == [manifest.chunk_size(0)] * 2 + [1 + suite.overhead]
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
    assert {path.name for path in before} == {path.name for path in [*V1.iterdir(), *ATTACKS.iterdir(), SUMS]}
    make.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_file_is_what_it_was_when_it_was_added() -> None:
    lines = SUMS.read_text(encoding="utf-8").splitlines()
    files = sorted([*V1.iterdir(), *ATTACKS.iterdir()])
    found = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.parent.name}/{path.name}" for path in files]
    assert sorted(lines) == sorted(found)


def test_a_golden_file_is_never_overwritten(tmp_path: Path) -> None:
    assert keep(tmp_path / "update.bin", b"old")
    assert not keep(tmp_path / "update.bin", b"new")
    assert (tmp_path / "update.bin").read_bytes() == b"old"
