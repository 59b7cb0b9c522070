"""Keys made at the site: a request that carries the public halves, and the kit without private keys that answers it.

The request may travel by any channel. It is authenticated by a one-time code that the site tells by telephone: whoever
changes the request on its way would have to know it.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

import nacl.encoding
import nacl.hash
import nacl.pwhash
import nacl.utils
from pydantic import Field

from broker.blobs.base import check_head
from deploy.keyfiles import new_folder, read_identity, write_files
from deploy.provision import kit_files, pki
from deploy.provision.kits import ALPHABET, KitFacts, check_kit, random_code, read_kit
from protocol.codec import EXACT, TEXT, Bytes, Word, decode, encode
from protocol.errors import ConfigError, Malformed, TooLarge
from protocol.keys import Identity, Participant, Role
from protocol.registry import PublicKey
from protocol.topology import check_site

REQUEST_LIMIT = 16 * 1024
CODE_GROUPS = 4
"""Four groups of five: 98 bits."""
_MAGIC = b"fledge enrolment 1\0"
_SALT, _MAC = 16, 32
_BEGIN, _END = "-----BEGIN FLEDGE REQUEST-----", "-----END FLEDGE REQUEST-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """What a participant asks for: to be known by these keys."""

    __pydantic_config__ = EXACT
    federation: Word
    name: Word
    role: Annotated[Role, TEXT]
    verify_key: PublicKey
    box_key: PublicKey
    signing_request: Annotated[Bytes, Field(max_length=4096)]
    """For the TLS certificate, PEM."""

    @property
    def participant(self) -> Participant:
        """The public keys under their name."""
        return Participant(name=self.name, role=self.role, verify_key=self.verify_key, box_key=self.box_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What `enrol` made."""

    request: Path
    code: str = field(repr=False)
    """To be told by telephone, once; it is kept nowhere."""


def make_request(identity: Identity, federation: str, tls_key: bytes, code: str) -> bytes:
    """The text of a request for an identity and its TLS key (PEM)."""
    public = identity.public
    body = encode(
        EnrolmentRequest(
            federation=federation,
            name=public.name,
            role=public.role,
            verify_key=public.verify_key,
            box_key=public.box_key,
            signing_request=pki.signing_request(public.name, tls_key),
        )
    )
    salt = nacl.utils.random(_SALT)
    text = base64.encodebytes(salt + _mac(code, salt, body) + body).decode()
    return f"{_BEGIN}\n{text}{_END}\n".encode()


def open_request(raw: bytes, code: str, federation: str) -> EnrolmentRequest:
    """The request that a text holds, if its maker knew the code; nothing is parsed before.

    Raises:
        ConfigError: it is no request, the code does not fit, or it is for another federation.
    """
    try:
        text = raw.decode("ascii")
        blob = base64.b64decode("".join(text.split(_BEGIN, 1)[1].split(_END, 1)[0].split()), validate=True)
    except (ValueError, IndexError):
        blob = b""
    if len(raw) > REQUEST_LIMIT or len(blob) <= _SALT + _MAC:
        raise ConfigError("this is not a request that `fledge enrol` wrote; have it sent again as it is")
    salt, mac, body = blob[:_SALT], blob[_SALT : _SALT + _MAC], blob[_SALT + _MAC :]
    if not hmac.compare_digest(mac, _mac(code, salt, body)):
        raise ConfigError(
            "the code does not fit this request; ask for the code again, and if it was typed right the request was "
            "changed on its way: then have a new one made by `fledge enrol`"
        )
    try:
        request = decode(EnrolmentRequest, body, REQUEST_LIMIT)
    except (Malformed, TooLarge) as error:
        raise ConfigError(f"the request cannot be read ({error}); both sides need the same fledge") from error
    if request.federation != federation:
        raise ConfigError(f"{request.name} asks to join {request.federation}, but this is {federation}; send it there")
    return request


def _mac(code: str, salt: bytes, body: bytes) -> bytes:
    """Over a request's body, by a key that only the code gives."""
    key = nacl.pwhash.argon2id.kdf(
        32,
        typed_code(code).encode(),
        salt,
        opslimit=nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE,
        memlimit=nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE,
    )
    mac: bytes = nacl.hash.blake2b(_MAGIC + salt + body, _MAC, key=key, encoder=nacl.encoding.RawEncoder)
    return mac


def typed_code(text: str) -> str:
    """A one-time code as it was typed, without hyphens and spaces.

    Raises:
        ConfigError: it cannot be one; says why without showing it.
    """
    letters = "".join(text.lower().replace("-", "").split())
    if any(letter not in ALPHABET for letter in letters):
        raise ConfigError("the code has a character that no code has (0, 1, i, l and o are never used); type it again")
    if len(letters) != 5 * CODE_GROUPS:
        raise ConfigError(f"a code has {5 * CODE_GROUPS} characters, what was typed has {len(letters)}; type it again")
    return letters


def enrol(folder: Path, name: str, role: Role, federation: str) -> Enrolled:
    """Make a site's or an operator's keys (0600) and the request in a new folder.

    Raises:
        ConfigError: the name cannot be used, or the folder is there already.
    """
    check_site(name)
    check_head(federation)
    identity, tls_key, code = Identity.generate(name, role), pki.new_key(), random_code(CODE_GROUPS)
    request = make_request(identity, federation, tls_key, code)
    with new_folder(folder) as fresh:
        write_files(
            fresh, {kit_files.KEYS[role]: identity.to_bytes(), kit_files.TLS_KEY: tls_key, f"{name}.request": request}
        )
    return Enrolled(request=folder / f"{name}.request", code=code)


def finish(kit: Path, password: str, folder: Path, now: datetime) -> KitFacts:
    """Unpack the answer to a request into the folder that holds the keys; doing it again changes nothing.

    Raises:
        ConfigError: the kit is for other keys or brings its own, or would overwrite what is there.
    """
    files = read_kit(kit, password)
    facts = check_kit(files, now)
    if kit_files.KEYS[facts.role] in files or kit_files.TLS_KEY in files:
        raise ConfigError(f"this kit brings keys of its own; unpack it by: fledge kit {kit.name} -o FOLDER")
    identity = read_identity(folder / kit_files.KEYS[facts.role])
    try:
        tls_key = (folder / kit_files.TLS_KEY).read_bytes()
        held = {name: (folder / name).read_bytes() for name in files if (folder / name).exists()}
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}; is it the folder that `fledge enrol` made?") from error
    if identity.public != facts.participant or pki.public_key(tls_key) != pki.public_key(facts.certificate):
        raise ConfigError(f"the kit of {facts.name} is for other keys than those in {folder}; finish the right folder")
    if changed := sorted(name for name, data in held.items() if data != files[name]):
        raise ConfigError(f"{folder / changed[0]} is there already and differs; move it away, then finish again")
    last = kit_files.CONFIGURATION[facts.role]
    missing = sorted(files.keys() - held.keys(), key=lambda name: name == last)
    write_files(folder, {name: files[name] for name in missing})
    return facts
