"""Found a federation: the root's keys, the aggregator's and every site's, a signed registry, and what each starts from.

Everything is made in one place, which suits a trial; the founder has then seen every secret key once. What lies in
`sites/NAME` goes to that site over a channel you trust and is deleted here; `root.keys` goes offline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nacl.utils

from broker.blobs.base import check_head
from broker.blobs.open import check_store_url
from broker.net.urls import without_login
from broker.runtime.settings import nearest
from broker.transport.open import check_broker_url
from deploy.keyfiles import private_directory, write_identity, write_private
from deploy.provision.kit_files import CREDENTIALS, quoted
from protocol.cipher import Suite, aes_instructions
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.limits import RECIPIENTS
from protocol.registry import Registry, sign_registry
from protocol.topology import AGGREGATOR, check_site

ROOT_KEYS = "root.keys"
AGGREGATOR_TOML = "aggregator.toml"
WORKER_TOML = "worker.toml"

_AGGREGATOR = """\
# The aggregator of federation {name}. Paths are relative to this file.
federation = {federation}
# FLEDGE_BROKER and FLEDGE_STORE in the environment win over these; passwords belong there or into credentials.toml.
broker = {broker}
store = {store}
insecure = {insecure}
keys = "aggregator.keys"
registry = "registry.bin"
# The federation's root: what the registry has to be signed with.
root = "{root}"
state = "state"
"""

_WORKER = """\
# Site {site} of federation {name}. Paths are relative to this file.
federation = {federation}
# FLEDGE_BROKER and FLEDGE_STORE in the environment win over these; passwords belong there or into credentials.toml.
broker = {broker}
store = {store}
insecure = {insecure}
keys = "site.keys"
registry = "registry.bin"
# The federation's root: what the registry has to be signed with.
root = "{root}"
state = "state"
# Your training code, as module:factory; the module is looked for beside this file too.
trainer = {trainer}
"""


def new_federation(
    directory: Path,
    *,
    name: str,
    sites: Sequence[str],
    broker: str,
    store: str,
    trainer: str = "mytask:trainer",
    options: Mapping[str, Mapping[str, object]] | None = None,
    filters: str = "",
    insecure: bool = False,
    cipher: str = "",
) -> Suite:
    """Make a federation's files in a new directory, and return the suite that its members encrypt with.

    Logins in the URLs go into a `credentials.toml` for each of them.

    Args:
        options: per site, values for the trainer's factory.
        filters: the privacy filters of every site, as TOML; a note on how to choose by default.
        insecure: let plain text go to other machines; for tests on a closed network only.
        cipher: the suite that members encrypt with; by default the faster one on this machine.

    Raises:
        ConfigError: a name or a URL cannot be used, or the directory holds something already.
    """
    _check(directory, name, sites)
    check_broker_url(broker, insecure=insecure)
    check_store_url(store, insecure=insecure)
    broker, broker_login = without_login(broker, "broker URL")
    store, store_login = without_login(store, "store URL")
    secrets = _credentials(broker_login, store_login)
    root = Identity.generate("root", Role.ROOT)
    members = [Identity.generate(AGGREGATOR, Role.AGGREGATOR), *(Identity.generate(site, Role.SITE) for site in sites)]
    suite = _suite(cipher)
    registry = Registry(version=0, entries=(), cipher=suite.word)
    for member in members:
        registry = registry.with_entry(member.public)
    record = sign_registry(registry, root, name, nacl.utils.random(16))
    common = {
        "name": name,
        "federation": quoted(name),
        "broker": quoted(broker),
        "store": quoted(store),
        "insecure": "true" if insecure else "false",
        "root": bytes(root.sign.verify_key).hex(),
    }
    private_directory(directory)
    write_identity(directory / ROOT_KEYS, root)
    write_identity(directory / "aggregator.keys", members[0])
    write_private(directory / "registry.bin", record)
    write_private(directory / AGGREGATOR_TOML, _AGGREGATOR.format(**common).encode())
    _write_some(directory / CREDENTIALS, secrets)
    for member in members[1:]:
        text = _WORKER.format(**common, site=member.name, trainer=quoted(trainer))
        text += filters or _FILTERS
        text += _table("options", (options or {}).get(member.name, {}))
        _write_site(directory / "sites" / member.name, member, record, text, secrets)
    return suite


def _write_site(kit: Path, member: Identity, record: bytes, settings: str, secrets: str) -> None:
    private_directory(kit)
    write_identity(kit / "site.keys", member)
    write_private(kit / "registry.bin", record)
    write_private(kit / WORKER_TOML, settings.encode())
    _write_some(kit / CREDENTIALS, secrets)


_FILTERS = """
# What is done to every update before it leaves this site; the site decides, and an empty list is refused.
# Each further [[filters]] is applied after the one before.
[[filters]]
name = "clip"
norm = 10.0
"""


def _credentials(broker: tuple[str, str] | None, store: tuple[str, str] | None) -> str:
    text = ""
    if store is not None:
        text += f"access_key = {quoted(store[0])}\nsecret_key = {quoted(store[1])}\n"
    if broker is not None:
        text += f"\n[broker]\nuser = {quoted(broker[0])}\npassword = {quoted(broker[1])}\n"
    return text and "# Logins for broker and store; mode 0600, and in no other place.\n" + text


def _write_some(path: Path, text: str) -> None:
    if text:
        write_private(path, text.encode())


def _table(name: str, values: Mapping[str, object]) -> str:
    if not values:
        return ""
    return f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _suite(word: str) -> Suite:
    if not word:
        return Suite.AEGIS256 if aes_instructions() else Suite.XCHACHA20
    words = [suite.word for suite in Suite]
    if word not in words:
        raise ConfigError(f"cipher {word!r}{nearest(word, words)}")
    return Suite.named(word)


def _check(directory: Path, name: str, sites: Sequence[str]) -> None:
    check_head(name)
    if not 1 <= len(sites) <= RECIPIENTS:
        raise ConfigError(f"a federation has 1 to {RECIPIENTS} sites, not {len(sites)}; name them with --site")
    for site in sites:
        check_site(site)
    if twice := sorted({site for site in sites if list(sites).count(site) > 1}):
        raise ConfigError(f"named twice: {', '.join(twice)}; every site needs a name of its own")
    try:
        used = directory.exists() and any(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror or error}; name a new directory") from error
    if used:
        raise ConfigError(f"{directory} is not empty, and keys are never overwritten; name a new directory")
