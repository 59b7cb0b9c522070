"""What can be seen without any network: the kit's files, the certificate, and the machine itself."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import psutil

from broker.net.tls import Tls
from broker.runtime.health import HEALTH, HUB_LONGEST_S, SITE_LONGEST_S, last_holder, stuck, trouble
from deploy.keyfiles import read_bounded, read_identity
from deploy.provision import pki
from fledge.connections import CREDENTIALS_TOML, tls_of
from fledge.doctor.findings import Finding, bad, good, skipped, warning
from fledge.doctor.place import Place
from fledge.operator.config import OperatorConfig
from protocol.cipher import Suite, aes_instructions
from protocol.errors import ConfigError, StateError, WireError
from protocol.keys import Identity, Role, titled
from protocol.limits import STORED_RECORD
from protocol.registry import Registry, open_registry
from worker.api.filters import build
from worker.config import WorkerConfig, site_policy

RENEW_WITHIN_DAYS = 21
_GIB = 1024**3
_LITTLE_DISK, _NO_DISK = 10 * _GIB, 1 * _GIB
_LITTLE_MEMORY = 2 * _GIB
_LITTLE_SHARED = 256 * 1024**2
_PEM_LIMIT = 256 * 1024
_GPU_S = 120
_GPU = "import torch; print(torch.cuda.device_count())"


def check_keys(place: Place) -> tuple[Finding, Identity | None]:
    """The participant's own keys: there, private, and of the right role."""
    path = place.base / place.config.keys
    try:
        identity = read_identity(path)
    except ConfigError as error:
        return bad("files.keys", "keys", str(error), "take the file from the kit again, or enrol again"), None
    if identity.role != place.role:
        cause = f"{path} holds keys of the role {identity.role.value}, the configuration is for {place.role.value}"
        return bad(
            "files.keys", "role", cause, "unpack the kits of different participants into different folders"
        ), None
    return good("files.keys", f"keys of {titled(identity.role, identity.name)}"), identity


def check_registry(place: Place, identity: Identity | None) -> tuple[Finding, Registry | None]:
    """The registry: signed by the root that the configuration names, and we are in it with these very keys."""
    path = place.base / place.config.registry
    again = "ask the hub for the federation's newest registry.bin"
    try:
        record = read_bounded(path, STORED_RECORD, "the signed registry")
        registry = open_registry(record, bytes.fromhex(place.config.root), place.config.federation)
    except (ConfigError, WireError) as error:
        code, advice = "registry", again
        if isinstance(error, WireError) and error.reason == "upgrade_needed":
            code, advice = error.reason, "install a newer fledge on this machine"
        return bad("files.registry", code, f"{path}: {error}", advice), None
    if identity is None:
        return good("files.registry", f"version {registry.version}"), registry
    held = [entry for entry in registry.entries if entry.verify_key == identity.public.verify_key]
    if not held:
        return bad("files.registry", "not_a_member", f"{identity.name} is not in it with these keys", again), registry
    if held[0].revoked is not None:
        cause = f"the keys of {identity.name} were revoked in version {held[0].revoked}"
        return bad("files.registry", "revoked", cause, "ask the hub why, and enrol again"), registry
    return good("files.registry", f"version {registry.version}, {identity.name} is a member"), registry


def check_cipher(registry: Registry, fast: Callable[[], bool] = aes_instructions) -> Finding:
    """What models and updates are encrypted with, and whether this processor has instructions for it."""
    check, has_aes = "machine.cipher", fast()
    told = f"{registry.cipher}, as version {registry.version} of the list of members says"
    if registry.suite is not Suite.AEGIS256:
        more = ", and the processor has AES instructions, with which aegis256 would be faster" if has_aes else ""
        return good(check, f"{told}; fast on any processor{more}")
    if has_aes:
        return good(check, f"{told}; the processor has the AES instructions for it")
    cause = (
        f"the federation encrypts with {told}, and this machine has no AES instructions: it encrypts and decrypts "
        "about 40 times slower than with xchacha20, 200 MB in 6 s of the processor instead of 0.15 s"
    )
    advice = (
        "where a virtual machine hides them, give it the host's processor type; else ask whoever runs "
        "`fledge provision` for `cipher: xchacha20` in project.yml"
    )
    return warning(check, "slow", cause, advice)


def check_service(place: Place, now: float) -> Iterator[Finding]:
    """What the service notes of itself while it runs: where `fledge healthcheck` is red, so are we."""
    if isinstance(place.config, OperatorConfig):
        return
    check, note = "service.health", place.base / place.config.state / HEALTH
    longest = SITE_LONGEST_S if place.role == Role.SITE else HUB_LONGEST_S
    try:
        holder = last_holder(note)
        why, waits = trouble(note, now, longest), stuck(note)
    except StateError as error:
        yield bad(check, "state", str(error), "run this as the service's user")
        return
    if holder is None or not holder.runs:
        return
    if why:
        advice = "if all else is well here, its log says what it met; it goes on by itself as soon as it can"
        yield bad(check, "red", why, advice)
    elif waits:
        yield warning(check, "stuck", f"healthy, but {waits}", "once that is done it goes on")
    else:
        yield good(check, "the service that runs from here is healthy")


def check_private(place: Place) -> Iterator[Finding]:
    """Files with secrets that others on this machine can read."""
    tls = tls_of(place.config, place.base)
    names = [place.base / CREDENTIALS_TOML, *([Path(tls.key)] if tls is not None and tls.key else [])]
    loose = [path for path in names if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in loose:
        yield bad("files.private", "readable", f"{path} can be read by others", f"run: chmod 600 {path}")
    if not loose:
        yield good("files.private", "nobody else can read what is secret")


def check_filters(place: Place) -> Iterator[Finding]:
    """A site's privacy filters: they can be made, and do what its policy demands."""
    if not isinstance(place.config, WorkerConfig):
        return
    chain = place.config.chain
    try:
        site_policy(place.config, place.base).check_filters(chain)
        build(chain)
    except ConfigError as error:
        yield bad("files.filters", "config", str(error), "the worker starts once this is right")
    else:
        yield good("files.filters", ", ".join(each.name for each in chain))


def check_certificate(tls: Tls | None, name: str | None, now: datetime) -> Finding:
    """Our own certificate: dates, authority, name, and that the key is its own."""
    check = "certificate"
    if tls is None or tls.cert is None or tls.ca is None:
        return skipped(check, "none", "the configuration names no certificate ([tls])")
    renew = "ask for: fledge provision --renew" + (f" {name}" if name else "")
    try:
        own, authority = (read_bounded(Path(path), _PEM_LIMIT, "a PEM file") for path in (tls.cert, tls.ca))
        key = read_bounded(Path(tls.key or tls.cert), _PEM_LIMIT, "a PEM file")
        fits = pki.public_key(own) == pki.public_key(key)
        called = pki.common_name(own)
        left = (pki.expires(own) - now).total_seconds() / 86400
    except ConfigError as error:
        return bad(check, "unreadable", str(error), "take the files from the kit again")
    if not fits:
        return bad(check, "other_key", f"{tls.key} is not the key of {tls.cert}", "take both from the same kit")
    if name is not None and called != name:
        cause = f"it is for {called!r}, and these are the keys of {name!r}: the broker would take us for somebody else"
        return bad(check, "other_name", cause, "take keys and certificate from the same kit")
    if not _issued(own, authority):
        return bad(check, "other_authority", f"{tls.cert} is not issued by the authority in {tls.ca}", renew)
    try:
        pki.check_dates(own, now)
    except ConfigError as error:
        return bad(check, "expired" if left <= 0 else "not_yet", str(error), renew)
    if left < RENEW_WITHIN_DAYS:
        return warning(check, "ends_soon", f"{left:.0f} days left", renew, number=left)
    return good(check, f"of {called}, {left:.0f} days left", number=left)


def _issued(certificate: bytes, authority: bytes) -> bool:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        own = x509.load_pem_x509_certificate(certificate)
        authorities = x509.load_pem_x509_certificates(authority)
    except ValueError:
        return False
    for one in authorities:
        try:
            own.verify_directly_issued_by(one)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def check_disk(place: Place, free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> Finding:
    """Room where the state is kept."""
    folder = place.base / getattr(place.config, "state", Path())
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    left = free(folder)
    words = f"{left / _GIB:.1f} GiB free for the state"
    if left < _NO_DISK:
        return bad("machine.disk", "full", words, "make room, or let `state` point to another disk")
    if left < _LITTLE_DISK:
        return warning("machine.disk", "little", words, "a model is kept several times over", number=left)
    return good("machine.disk", words, number=left)


def check_memory(available: Callable[[], int] = lambda: psutil.virtual_memory().available) -> Finding:
    """Memory that is left."""
    left = available()
    words = f"{left / _GIB:.1f} GiB available"
    if left < _LITTLE_MEMORY:
        return warning("machine.memory", "little", words, "training may be killed; end something else", number=left)
    return good("machine.memory", words, number=left)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, by which the processes of a data loader hand over their batches."""
    if not folder.is_dir():
        return skipped("machine.shm", "none", f"there is no {folder}")
    size = shutil.disk_usage(folder).total
    words = f"{size / 1024**2:.0f} MiB in {folder}"
    if size < _LITTLE_SHARED:
        advice = "PyTorch's data loaders need more: in a container --shm-size 1g, or shm_size in the compose file"
        return warning("machine.shm", "little", words, advice, number=size)
    return good("machine.shm", words, number=size)


def check_gpu() -> Finding:
    """Whether torch sees an accelerator; asked in a process of its own, which may crash and takes its memory along."""
    if find_spec("torch") is None:
        return skipped("machine.gpu", "no_torch", "torch is not installed here")
    fitted = any(Path("/dev").glob("nvidia[0-9]*"))
    try:
        done = subprocess.run([sys.executable, "-c", _GPU], capture_output=True, text=True, timeout=_GPU_S, check=False)
        count = int(done.stdout) if done.returncode == 0 else -1
    except (OSError, ValueError, subprocess.TimeoutExpired):
        count = -1
    if count > 0:
        return good("machine.gpu", f"torch sees {count}", number=count)
    if count < 0:
        return warning("machine.gpu", "torch_fails", "torch cannot be loaded here", "try: python -c 'import torch'")
    if fitted:
        advice = (
            "see whether the driver fits (nvidia-smi); a container needs the GPU handed in and a restart after updates"
        )
        return warning("machine.gpu", "not_seen", "the machine has a GPU, torch does not see it", advice)
    return good("machine.gpu", "none; training runs on the processor", number=0)


def check_machine(place: Place) -> Iterator[Finding]:
    """Disk and memory, and at a site what training needs."""
    yield check_disk(place)
    yield check_memory()
    if place.role == Role.SITE:
        yield check_shared_memory()
        yield check_gpu()
