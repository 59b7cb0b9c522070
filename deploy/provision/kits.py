"""Kits as files: an AES-256 zip that is made in one step, and an extractor that believes nothing the zip says."""

from __future__ import annotations

import hashlib
import io
import secrets
import stat
import struct
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyzipper

from deploy.keyfiles import new_folder, read_bounded, replace_private, write_files
from deploy.provision import kit_files, pki
from protocol.errors import ConfigError, FledgeError
from protocol.keys import Identity, Participant, Role
from protocol.limits import STORED_RECORD
from protocol.registry import open_registry

MANIFEST = "kit.sha256"
"""Names and digests of all other files: a zip authenticates what is in its entries, but not how they are called."""
_ZIP_LIMIT = 4 * 1024**2
_FILE_LIMIT = STORED_RECORD
_MOST_FILES = 32
_AES_256 = 3
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
"""Without look-alikes: it is read out on the telephone."""
_FAULTS = (
    *(pyzipper.BadZipFile, pyzipper.LargeZipFile, NotImplementedError, EOFError, OSError, ValueError),
    *(LookupError, OverflowError, struct.error, zlib.error),
)


def random_code(groups: int) -> str:
    """Random letters and digits in groups of five; each group is worth 24 bits."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(5)) for _ in range(groups))


def write_kit(path: Path, files: Mapping[str, bytes], password: str) -> None:
    """Put files into an AES-256 zip of mode 0600; an earlier one of that name is replaced in one step."""
    if strange := sorted(files.keys() - kit_files.ALLOWED):
        raise ConfigError(f"{strange[0]} cannot stand in a kit; add it to what a kit may hold")
    buffer = io.BytesIO()
    with pyzipper.AESZipFile(
        buffer, "w", compression=pyzipper.ZIP_STORED, encryption=pyzipper.WZ_AES, encryption_kwargs={"nbits": 256}
    ) as zip:
        zip.setpassword(password.encode())
        for name, data in {**files, MANIFEST: _manifest(files)}.items():
            zip.writestr(name, data)
    replace_private(path, buffer.getvalue())


def read_kit(path: Path, password: str) -> dict[str, bytes]:
    """The files of a kit, by name; nothing is written.

    Raises:
        ConfigError: the password is wrong, or this is not a whole, unchanged kit.
    """
    raw = read_bounded(path, _ZIP_LIMIT, "a kit that `fledge provision` made")
    damaged = f"{path} is damaged or not a kit that fledge made; have it sent again"
    try:
        with pyzipper.AESZipFile(io.BytesIO(raw)) as zip:
            entries = zip.infolist()
            if len(entries) > _MOST_FILES or len({entry.filename.casefold() for entry in entries}) != len(entries):
                raise ConfigError(f"{damaged} (too many files, or two of one name)")
            for entry in entries:
                _check_entry(entry, damaged)
            files = {entry.filename: _content(zip, entry, password, path) for entry in entries}
    except _FAULTS as error:
        raise ConfigError(f"{damaged} ({type(error).__name__})") from error
    if files.pop(MANIFEST, b"") != _manifest(files):
        raise ConfigError(f"{damaged} (its files are not those it was made of)")
    return files


def _check_entry(entry: pyzipper.ZipInfo, damaged: str) -> None:
    name = entry.filename
    if name not in kit_files.ALLOWED and name != MANIFEST:
        raise ConfigError(f"{damaged} (it holds {name[:60]!r}, which no kit does)")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ConfigError(f"{damaged} ({name} is not a plain file)")
    encrypted = entry.flag_bits & 1 and entry.wz_aes_version is not None and entry.wz_aes_strength == _AES_256
    if not encrypted or entry.compress_type != pyzipper.ZIP_STORED:
        raise ConfigError(f"{damaged} ({name} is not encrypted as fledge does it)")
    if not 0 < entry.file_size <= _FILE_LIMIT:
        raise ConfigError(f"{damaged} ({name} has no sensible size)")


def _content(zip: pyzipper.AESZipFile, entry: pyzipper.ZipInfo, password: str, path: Path) -> bytes:
    try:
        with zip.open(entry, pwd=password.encode()) as file:
            data: bytes = file.read(_FILE_LIMIT + 1)  # to the end, where what was read is authenticated
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            raise
        raise ConfigError(
            f"the password does not open {path}; type it with its hyphens, as `fledge provision` showed it once; "
            "if it is lost, ask for a new kit"
        ) from None
    return data


def _manifest(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class KitFacts:
    """What a kit says of itself, after everything in it was found to fit together."""

    name: str
    role: Role
    federation: str
    participant: Participant
    """Its entry in the registry."""
    certificate: bytes
    """PEM."""


def check_kit(files: Mapping[str, bytes], now: datetime) -> KitFacts:
    """Let pass a kit whose registry, keys and certificate belong together and hold now.

    Raises:
        ConfigError: they do not; says what to do.
    """
    role = next((role for role, name in kit_files.CONFIGURATION.items() if name in files), None)
    needed = (kit_files.REGISTRY, kit_files.AUTHORITY, kit_files.CERTIFICATE)
    if role is None or any(name not in files for name in needed):
        raise ConfigError("this kit is not complete; have it sent again")
    certificate = files[kit_files.CERTIFICATE]
    name = pki.common_name(certificate)
    try:
        table = tomllib.loads(files[kit_files.CONFIGURATION[role]].decode())
        federation = str(table["federation"])
        registry = open_registry(files[kit_files.REGISTRY], bytes.fromhex(table["root"]), federation)
        entry = registry.member(name)
    except (FledgeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the kit of {name} does not fit together ({error}); have a new one made") from error
    if entry.role != role:
        raise ConfigError(f"the kit of {name} is for another role ({entry.role.value}); have a new one made")
    keys, tls_key = files.get(kit_files.KEYS[role]), files.get(kit_files.TLS_KEY)
    if keys is not None and Identity.from_bytes(keys).public != entry:
        raise ConfigError(f"the keys in the kit of {name} are not those of the registry; have a new one made")
    if tls_key is not None and pki.public_key(tls_key) != pki.public_key(certificate):
        raise ConfigError(f"certificate and key in the kit of {name} do not belong together; have a new one made")
    pki.check_dates(certificate, now)
    return KitFacts(name=name, role=role, federation=federation, participant=entry, certificate=certificate)


def open_kit(path: Path, password: str, folder: Path, now: datetime) -> KitFacts:
    """Unpack a kit into a new folder (0700, its files 0600); after an error there is no folder.

    Raises:
        ConfigError: the password is wrong, the kit is damaged or does not hold now, or the folder is there already.
    """
    facts = check_kit(files := read_kit(path, password), now)
    if kit_files.KEYS[facts.role] not in files:
        raise ConfigError(
            f"the kit of {facts.name} holds no keys, because they were made by `fledge enrol`; "
            f"unpack it beside them: fledge enrol --finish {path.name} FOLDER"
        )
    with new_folder(folder) as fresh:
        write_files(fresh, files)
    return facts
