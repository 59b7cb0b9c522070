"""Zip archives of training code, read as if by an enemy: what is not plainly a small tree of files is refused whole."""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from protocol import limits
from protocol.errors import Malformed, TooLarge

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_NAME = 240
_END = struct.Struct("<4s4H2LH")
"""What an archive ends with; we take none with a comment behind it."""
_LOCAL = struct.Struct("<26x2H")
"""What stands before a file: the lengths of its name and of more about it."""
_LONGEST_ENTRY = 46 + _NAME + 512
_PIECE = 64 * 1024
_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".dll", ".dylib")
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, ArithmeticError, ValueError),
    RuntimeError,  # among them what the library does not implement
)


def read_archive(raw: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """The path, as its parts, and content of every file, one at a time; the checks of all names come before the first.

    Raises:
        Malformed: it is no zip archive, or holds something other than plain files under plain relative names.
        TooLarge: it has too many files, or they unpack to too much; counted while they do, whatever the headers say.
    """
    _check_end(raw)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            _check_layout(raw, entries, archive.start_dir)
            left = limits.CODE_UNPACKED
            for entry in entries:
                content = _inflated(archive, entry, left)
                left -= len(content)
                yield tuple(entry.filename.split("/")), content
    except _UNREADABLE as error:
        raise Malformed(f"the code is no zip archive that can be read: {type(error).__name__}") from error


def _check_end(raw: bytes) -> None:
    """Look at the archive's last record first: the library would read as many entries as it names."""
    if len(raw) > limits.CODE:
        raise TooLarge(f"code of {len(raw)} bytes; at most {limits.CODE} are allowed")
    if len(raw) < _END.size:
        raise Malformed("the code is no zip archive")
    magic, disk, first, here, count, size, _, comment = _END.unpack(raw[-_END.size :])
    if magic != b"PK\x05\x06" or comment or disk or first or here != count:
        raise Malformed("the code is no plain zip archive in one part and without a comment")
    if count > limits.CODE_FILES or size > limits.CODE_FILES * _LONGEST_ENTRY:
        raise TooLarge(f"code with more than {limits.CODE_FILES} files; give fewer")
    if not count or raw[-_END.size - 20 :].startswith(b"PK\x06\x07"):
        raise Malformed("the code is an archive without files, or one of the 64-bit kind")


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > limits.CODE_FILES:
        raise TooLarge(f"code with more than {limits.CODE_FILES} files; give fewer")
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        _check_entry(entry)
        name = entry.filename.lower()  # some file systems tell no difference
        parts = name.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if name in files or name in folders or above & files:
            raise Malformed(f"the archive has {_told(entry)} twice")
        files.add(name)
        folders |= above


def _check_layout(raw: bytes, entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse bytes that no entry accounts for: tools that read from the front would show other files than we take."""
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset != at:
            raise Malformed(f"the archive holds something before {_told(entry)} that its list does not name")
        name, extra = _LOCAL.unpack_from(raw, at)
        at += _LOCAL.size + name + extra + entry.compress_size
        if entry.flag_bits & 0x8:  # then sizes follow once more, with or without a mark before them
            at += 16 if raw[at : at + 4] == b"PK\x07\x08" else 12
    if at != directory:
        raise Malformed("the archive holds something behind its last file that its list does not name")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    plain = len(name) <= _NAME and all(_PART.fullmatch(part) for part in name.split("/"))
    if name != entry.orig_filename or not plain:
        raise Malformed(
            f"the archive has a file called {_told(entry)}; relative paths with letters, digits and . _ - are taken, "
            "no folders of their own and nothing that begins with a dot"
        )
    if name.lower().endswith(_COMPILED):
        raise Malformed(f"{_told(entry)} in the archive is compiled code, which nobody can look at; leave it out")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.external_attr & 0x10:
        raise Malformed(f"{_told(entry)} in the archive is not an ordinary file")
    if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Malformed(f"{_told(entry)} in the archive is encrypted or packed in a way other than stored or deflated")


def _inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    content = bytearray()
    with archive.open(entry) as file:
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > limit:
                raise TooLarge(f"the code unpacks to more than {limits.CODE_UNPACKED} bytes")
    if len(content) != entry.file_size:
        raise Malformed(f"{_told(entry)} in the archive is not as long as the archive says")
    return bytes(content)


def _told(entry: zipfile.ZipInfo) -> str:
    return ascii(entry.orig_filename[:64])
