"""Archives of code that are not what they should be are refused whole, before anything of them is on the disk."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.runtime.code_archive import read_archive
from protocol import limits
from protocol.errors import Malformed, StateError, Tampered, TooLarge, WireError
from tests.support.fake_aggregator import archive
from worker.storage.code_store import CodeLost, CodeStore

GOOD = archive(
    {"trainer.py": "x = 1\n", "helpers/__init__.py": "", "helpers/more.py": "y = 2\n", "data/run-1.txt": "z"}
)


def digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def packed(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    raw = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names that come twice
        with zipfile.ZipFile(raw, "w", method) as made:
            for info, content in entries:
                made.writestr(info, content, compress_type=method)
    return raw.getvalue()


def special(mode: int) -> bytes:
    info = zipfile.ZipInfo("link.py")
    info.external_attr = mode << 16
    return packed((info, b"/etc/passwd"))


def lying(raw: bytes, size: int) -> bytes:
    """The archive with another size of its only file in both of its headers."""
    central = raw.index(b"PK\x01\x02")
    told = struct.pack("<L", size)
    return raw[:22] + told + raw[26 : central + 24] + told + raw[central + 28 :]


def unlisted(*positions: int) -> bytes:
    """An archive of three files whose list names all but these: whoever reads from the front sees them."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as made:
        for name in ("a.py", "b.py", "c.py"):
            made.writestr(name, "x = 1")
        made.filelist[:] = [each for index, each in enumerate(made.filelist) if index not in positions]
    return raw.getvalue()


def streamed() -> bytes:
    """As programs write it that cannot go back: sizes stand behind the files."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.py", "x = 1\n" * 99)
        made.writestr("b/c.py", "y = 2")
    return pipe.getvalue()


def encrypted() -> bytes:
    raw = bytearray(archive({"a.py": "x"}))
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


NAMES = [
    *("/etc/passwd", "../up.py", "a/../../up.py", "a/./b.py", "a//b.py", "C:/x.py", "a\\b.py", ".hidden", "a/.b"),
    *("", "folder/", "sp ace.py", "é.py", "new\nline.py", "nul\0.py", "x" * 129, "/".join(["abc"] * 70)),
    *("trainer.pyc", "__pycache__/trainer.cpython-311.PYC", "fast.so", "fast.PYD"),
]
BAD: dict[str, Callable[[], bytes]] = {
    "a symlink": lambda: special(stat.S_IFLNK | 0o777),
    "a device": lambda: special(stat.S_IFCHR | 0o600),
    "a folder by its mode": lambda: special(stat.S_IFDIR | 0o700),
    "a name twice": lambda: packed(("a.py", b"1"), ("a.py", b"2")),
    "a name twice but for its case": lambda: packed(("a.py", b"1"), ("A.py", b"2")),
    "a file that is a folder too": lambda: packed(("a", b"1"), ("a/b.py", b"2")),
    "a folder that is a file too": lambda: packed(("a/b.py", b"2"), ("a", b"1")),
    "another compression": lambda: packed(("a.py", b"1" * 1000), method=zipfile.ZIP_BZIP2),
    "encryption": encrypted,
    "no file at all": packed,
    "no archive": lambda: b"#!/bin/sh\n" * 10,
    "nothing": lambda: b"",
    "a cut archive": lambda: GOOD[:-30],
    "a damaged file": lambda: packed(("a.py", b"abc")).replace(b"abc", b"abd", 1),
    "another archive before it": lambda: archive({"trainer.py": "y = 1"}) + GOOD,
    "a file before those it names": lambda: unlisted(0),
    "a file between those it names": lambda: unlisted(1),
    "a file behind those it names": lambda: unlisted(2),
    "a comment behind it": lambda: GOOD[:-2] + b"\x01\0x",
    "a shorter file than told": lambda: lying(packed(("a.py", b"abc"), method=zipfile.ZIP_DEFLATED), 2**31),
    "a longer file than told": lambda: lying(packed(("a.py", b"abc" * 99), method=zipfile.ZIP_DEFLATED), 5),
}


def test_an_archive_may_hold_the_sizes_of_files_behind_them() -> None:
    assert dict(read_archive(streamed())) == {("a.py",): b"x = 1\n" * 99, ("b", "c.py"): b"y = 2"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_name_that_is_not_plain_is_refused(name: str, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    refused(packed((info, b"x")), Malformed, tmp_path)


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_what_is_not_a_plain_archive_is_refused(make: Callable[[], bytes], tmp_path: Path) -> None:
    refused(make(), Malformed, tmp_path)


def test_a_bomb_is_stopped_while_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CODE_UNPACKED", 2**20)
    refused(packed(("bomb.py", bytes(2**24)), method=zipfile.ZIP_DEFLATED), TooLarge, tmp_path)
    refused(packed(("a.py", bytes(2**19)), ("b.py", bytes(2**19 + 1)), method=zipfile.ZIP_DEFLATED), TooLarge, tmp_path)
    assert len(list(read_archive(packed(("a.py", bytes(2**19)), ("b.py", bytes(2**19)))))) == 2


def test_more_files_than_allowed_are_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODE_FILES", 3)
    refused(archive({f"f{number}.py": "" for number in range(4)}), TooLarge, tmp_path)
    assert len(list(read_archive(archive({f"f{number}.py": "" for number in range(3)})))) == 3
    many = bytearray(archive({f"f{number}.py": "" for number in range(9)}))
    many[-14:-10] = struct.pack("<HH", 2, 2)  # what the last record says need not be so
    refused(bytes(many), TooLarge, tmp_path)


def test_an_archive_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CODE", len(GOOD) - 1)
    refused(GOOD, TooLarge, tmp_path)


def refused(raw: bytes, kind: type[WireError], state: Path) -> None:
    codes = CodeStore(state / "code")
    with pytest.raises(kind):
        codes.keep(digest(raw), raw)
    assert [path for path in state.rglob("*") if path != state / "code"] == []


# ---- what is kept


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_code_is_kept_whole_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    codes, code = CodeStore(tmp_path / "code"), digest(GOOD)
    codes.keep(code, GOOD)
    codes.keep(code, GOOD)
    folder = codes.unpacked(code)
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [code.hex(), f"{code.hex()}.zip"]
    assert tree(folder) == {
        "trainer.py": b"x = 1\n",
        "helpers/__init__.py": b"",
        "helpers/more.py": b"y = 2\n",
        "data/run-1.txt": b"z",
    }
    for path in (tmp_path / "code", *(tmp_path / "code").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_code_with_another_digest_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(Tampered, match="the order names"):
        CodeStore(tmp_path / "code").keep(digest(b"other"), GOOD)
    assert not (tmp_path / "code").exists()


def test_what_was_changed_added_or_removed_in_the_folder_is_as_it_was_when_it_is_wanted(tmp_path: Path) -> None:
    codes, code = CodeStore(tmp_path / "code"), digest(GOOD)
    codes.keep(code, GOOD)
    folder = codes.unpacked(code)
    before = tree(folder)
    (folder / "trainer.py").write_text("import os")
    (folder / "helpers/more.py").unlink()
    (folder / "sitecustomize.py").write_text("evil")
    (folder / "data/link").symlink_to("/etc/passwd")
    assert tree(codes.unpacked(code)) == before
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert tree(codes.unpacked(code)) == before
    assert not folder.is_symlink()


def test_an_archive_that_was_changed_or_is_gone_is_lost(tmp_path: Path) -> None:
    codes, code = CodeStore(tmp_path / "code"), digest(GOOD)
    codes.keep(code, GOOD)
    kept = tmp_path / "code" / f"{code.hex()}.zip"
    kept.write_bytes(archive({"trainer.py": "evil"}))
    with pytest.raises(CodeLost, match="was changed"):
        codes.unpacked(code)
    kept.unlink()
    with pytest.raises(CodeLost, match="deployed again"):
        codes.unpacked(code)


def test_code_that_is_forgotten_or_that_nobody_knows_of_is_deleted(tmp_path: Path) -> None:
    other = archive({"trainer.py": "other"})
    codes = CodeStore(tmp_path / "code")
    assert codes.sweep([]) == 0
    codes.forget(digest(GOOD))
    for raw in (GOOD, other):
        codes.keep(digest(raw), raw)
    codes.forget(digest(other))
    (tmp_path / "code" / ".unfinished.1").mkdir()
    (tmp_path / "code" / ".unfinished.2").write_text("half")
    (tmp_path / "code" / "link").symlink_to(tmp_path)
    assert codes.sweep([digest(GOOD)]) == 3
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [
        digest(GOOD).hex(),
        f"{digest(GOOD).hex()}.zip",
    ]
    assert codes.sweep([]) == 2


def test_a_place_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("a file")
    with pytest.raises(StateError, match="check the disk"):
        CodeStore(tmp_path / "code").keep(digest(GOOD), GOOD)
