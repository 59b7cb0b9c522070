from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from aggregator.pipeline.genesis import Genesis
from broker.blobs.memory import MemoryBlobs
from fledge.runs import upload
from fledge.runs.code_archive import archive, read_code
from fledge.runs.init_run import init_run, load_run
from fledge.runs.upload import Packed, pack, send
from protocol import limits
from protocol.envelope import body, unlock, verify
from protocol.errors import ConfigError
from protocol.messages import Bundle, Kind
from protocol.topology import bundle_key
from tests.support.chunks import stored
from tests.support.federation import Federation, wide

TRAINER = b"import network\n\n\ndef trainer(**options):\n    return network.make(**options)\n"
NETWORK = b"from fledge.demo.task import trainer as make\n"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "mycode"
    (folder / "parts").mkdir(parents=True)
    (folder / "trainer.py").write_bytes(TRAINER)
    (folder / "network.py").write_bytes(NETWORK)
    (folder / "parts" / "labels.txt").write_bytes(b"left\nright\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, code: Path) -> Path:
    init_run("fledge.demo.task:trainer", tmp_path / "run", name="digits", options={"seed": 3, "hospitals": 2})
    (tmp_path / "run" / "code").symlink_to(code)
    return tmp_path / "run"


def test_equal_files_make_equal_bytes_whatever_else_differs(code: Path) -> None:
    first = archive(read_code(code))
    os.utime(code / "trainer.py", (1, 1))
    (code / "trainer.py").chmod(0o600)
    for name in (".git", "__pycache__"):
        (code / name).mkdir()
        (code / name / "x.py").write_text("x")
    (code / "old.pyc").write_text("x")
    (code / ".hidden").write_text("x")
    assert archive(read_code(code)) == first
    (code / "network.py").write_bytes(NETWORK + b"\n")
    assert archive(read_code(code)) != first


def test_the_archive_is_a_plain_zip_of_plain_files(code: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive(read_code(code)))) as zip:
        assert zip.namelist() == ["network.py", "parts/labels.txt", "trainer.py"]
        assert zip.read("trainer.py") == TRAINER
        for entry in zip.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.external_attr >> 16 == stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("trainer.py", b"x = 1\n", "has no `trainer`"),
        ("trainer.py", b"def trainer(:\n", "line 1: not valid Python"),
        ("trainer.py", None, "is not there; a run's code needs"),
        ("weights.bin", bytes(limits.CODE_UNPACKED), "larger than 64 MiB"),
        ("noise.bin", os.urandom(limits.CODE), "as an archive, at most 16 MiB"),
    ],
)
def test_code_that_sites_could_not_use_is_refused_here(code: Path, name: str, data: bytes | None, says: str) -> None:
    if data is None:
        (code / name).unlink()
    else:
        (code / name).write_bytes(data)
    with pytest.raises(ConfigError, match=says):
        archive(read_code(code))


@pytest.mark.parametrize("text", [b"from network import *\n", b"trainer = make\n", b"import x as trainer\n"])
def test_a_trainer_may_come_from_elsewhere(code: Path, text: bytes) -> None:
    (code / "trainer.py").write_bytes(text)
    assert read_code(code)["trainer.py"] == text


def test_links_and_what_is_no_file_do_not_travel(code: Path) -> None:
    (code / "data").symlink_to("/etc")
    with pytest.raises(ConfigError, match="is a link"):
        read_code(code)
    (code / "data").unlink()
    os.mkfifo(code / "pipe")
    with pytest.raises(ConfigError, match="no plain file"):
        read_code(code)


def test_too_many_files_are_refused(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CODE_FILES", 2)
    with pytest.raises(ConfigError, match="more than 2 files"):
        read_code(code)


def test_another_name_changes_that_line_and_no_other(run: Path) -> None:
    plain, other = pack(run), pack(run, "chest-2")
    assert (plain.name, other.name) == ("digits", "chest-2")
    assert plain.config == (run / "run.toml").read_bytes()
    assert other.config == plain.config.replace(b'name = "digits"', b'name = "chest-2"', 1)
    assert plain.digest == other.digest
    with pytest.raises(ConfigError, match="cannot name a run"):
        pack(run, "chest 2")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda run: (run / "run.toml").unlink(), "No such file"),
        (lambda run: (run / "spec.bin").write_bytes(b"x"), "damaged"),
        (lambda run: (run / "initial.safetensors").write_bytes(b"x"), "is not the model"),
        (lambda run: (run / "code").unlink() or (run / "code").mkdir(), "is not there"),
        (lambda run: (run / "run.toml").write_text(f'name = "x"\n#{"x" * limits.CONFIG}'), "at most 65536"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(run: Path, spoil: object, says: str) -> None:
    assert callable(spoil)
    spoil(run)
    with pytest.raises(ConfigError, match=says):
        pack(run)
    with pytest.raises(ConfigError, match="not a folder"):
        pack(run / "nowhere")


def test_what_was_sent_opens_for_the_aggregator_and_is_what_was_packed(run: Path) -> None:
    federation, store, told = Federation(), MemoryBlobs(), list[int]()
    packed = pack(run)
    operator, hub = federation.operator, federation.aggregator
    name = send(packed, operator, "test-federation", federation.registry, store, progress=told.append)
    raw = store.get(bundle_key(operator.name, name), limits.STORED_RECORD)
    verified = verify(raw, federation.registry, federation="test-federation", kinds=[Kind.BUNDLE], limit=len(raw))
    key = unlock(verified, hub)
    assert (verified.core.run, verified.core.spec) == ("digits", packed.genesis.spec.digest)
    said = body(verified, Bundle, key)
    assert (said.config, said.code, said.spec) == (packed.config, len(packed.code), len(packed.spec))
    assert verified.manifest is not None
    sent = stored(store, key.reader(verified.manifest), partial(bundle_key, operator.name))
    assert sent == packed.code + packed.spec + (run / "initial.safetensors").read_bytes()
    assert hashlib.sha256(sent[: said.code]).hexdigest() == packed.digest
    assert told[-1] == packed.size == len(sent)


def test_a_model_is_never_in_memory_as_a_whole(run: Path) -> None:
    spec = wide(40 * limits.RECORD // 4)
    alive = 0

    def payload() -> Iterator[bytes]:
        nonlocal alive
        for start in range(0, spec.model_length, 777_777):
            alive += 1
            yield bytes(min(777_777, spec.model_length - start))

    small = pack(run)
    packed = Packed(name="wide", config=small.config, code=small.code, genesis=Genesis(spec, payload))
    records = packed.records()
    sizes = [len(next(records))]
    assert alive <= 2, "the first record is there as soon as its bytes are"
    sizes += [len(record) for record in records]
    assert set(sizes[:-1]) == {limits.RECORD}
    assert sum(sizes) == packed.size


def test_a_run_without_code_goes_up_too(run: Path) -> None:
    (run / "code").unlink()
    packed = pack(run)
    assert (packed.code, packed.digest) == (b"", "")
    assert upload.send(packed, Federation().operator, "f", Federation().registry, MemoryBlobs())


def test_init_run_copies_code_and_tells_its_digest(tmp_path: Path, code: Path) -> None:
    command = [sys.executable, "-m", "fledge.cli", "init-run", "-o", "chest", "--code", str(code)]
    options = ["--option", "seed=3", "--option", "hospitals=2"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packed = pack(tmp_path / "chest")
    assert f"code {packed.digest}" in done.stdout.splitlines()
    assert packed.code == archive(read_code(code))
    assert load_run(tmp_path / "chest").name == "chest"
    bare = subprocess.run([*command[:3], "init-run", "-o", "x"], cwd=tmp_path, capture_output=True, check=False)
    assert bare.returncode == 2
    assert b"--code" in bare.stderr
