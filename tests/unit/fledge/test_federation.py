from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from aggregator.config import AggregatorConfig
from broker.runtime.settings import read_toml
from deploy.keyfiles import read_identity
from fledge import federation
from fledge.bootstrap import open_aggregator, open_worker
from fledge.connections import broker_url, store_url
from fledge.doctor.place import read_kit
from fledge.federation import AGGREGATOR_TOML, ROOT_KEYS, WORKER_TOML, new_federation
from fledge.operator.config import OperatorConfig
from protocol.cipher import Suite, aes_instructions
from protocol.errors import ConfigError, Untrusted
from protocol.keys import Role
from protocol.registry import open_registry
from tests.support.packages import install
from worker.config import read_config

SITES = ["alpha", "beta-2"]
BROKER = "amqps://broker.example:5671/clinics"
STORE = "s3s://store.example/clinics"


def found(directory: Path, **changes: object) -> Path:
    given = {"name": "clinics", "sites": SITES, "broker": BROKER, "store": STORE, **changes}
    new_federation(directory, **given)
    return directory


def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    paths = list(found(tmp_path / "f").rglob("*"))
    files = [path for path in paths if path.is_file()]
    assert len(files) == 4 + 3 * len(SITES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "f" / "sites").iterdir()} == {0o700}


def test_the_registry_names_everybody_and_is_signed_by_the_root(tmp_path: Path) -> None:
    directory = found(tmp_path / "f")
    config = read_toml(directory / AGGREGATOR_TOML, AggregatorConfig)
    record = (directory / "registry.bin").read_bytes()
    registry = open_registry(record, bytes.fromhex(config.root), "clinics")
    assert [p.name for p in registry.members(Role.SITE)] == SITES
    assert registry.members(Role.AGGREGATOR) == (read_identity(directory / "aggregator.keys").public,)
    other = found(tmp_path / "g")
    with pytest.raises(Untrusted):
        open_registry((other / "registry.bin").read_bytes(), bytes.fromhex(config.root), "clinics")


def test_a_federation_encrypts_with_what_was_asked_for_or_is_faster_here(tmp_path: Path) -> None:
    fastest = Suite.AEGIS256 if aes_instructions() else Suite.XCHACHA20
    for word, suite in (("", fastest), *((suite.word, suite) for suite in Suite)):
        directory = found(tmp_path / (word or "default"), cipher=word)
        config = read_toml(directory / AGGREGATOR_TOML, AggregatorConfig)
        record = (directory / "registry.bin").read_bytes()
        assert open_registry(record, bytes.fromhex(config.root), "clinics").suite is suite


def test_a_machine_without_aes_instructions_founds_what_is_fast_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "aes_instructions", lambda: False)
    directory = found(tmp_path / "f")
    root = bytes(read_identity(directory / ROOT_KEYS).sign.verify_key)
    assert open_registry((directory / "registry.bin").read_bytes(), root, "clinics").suite is Suite.XCHACHA20


def test_a_sites_folder_holds_all_a_worker_needs_and_no_other_keys(tmp_path: Path) -> None:
    directory = found(tmp_path / "f", options={"alpha": {"data": "/data/x", "limit": 3}}, trainer="mine:build")
    kit = directory / "sites" / "alpha"
    config = read_config(kit / WORKER_TOML, {})
    assert (config.broker, config.store, config.trainer) == (BROKER, STORE, "mine:build")
    assert config.options == {"data": "/data/x", "limit": 3}
    assert [each.name for each in config.filters] == ["clip"]
    assert read_identity(kit / config.keys).name == "alpha"
    assert (kit / config.registry).read_bytes() == (directory / "registry.bin").read_bytes()
    assert sorted(path.name for path in kit.iterdir()) == ["registry.bin", "site.keys", "worker.toml"]
    secret = bytes(read_identity(directory / ROOT_KEYS).sign)
    assert all(secret not in path.read_bytes() for path in kit.iterdir())


def test_what_is_written_into_toml_comes_back_as_it_was(tmp_path: Path) -> None:
    strange = 'file:///srv/d"a\\ta€'
    text = (found(tmp_path / "f", store=strange) / AGGREGATOR_TOML).read_text()
    assert tomllib.loads(text)["store"] == strange


def test_passwords_in_urls_go_to_where_secrets_belong_and_are_used_from_there(tmp_path: Path) -> None:
    broker, store = "amqps://me:p%22%2Fa@broker.example/%2f?heartbeat=5", "s3s://key:hunter%2F2@store.example/clinics"
    directory = found(tmp_path / "f", broker=broker, store=store)
    for folder in (directory, directory / "sites" / "alpha"):
        assert stat.S_IMODE((folder / "credentials.toml").stat().st_mode) == 0o600
        place = read_kit(folder)
        assert (place.config.broker, place.store) == (
            "amqps://broker.example/%2f?heartbeat=5",
            "s3s://store.example/clinics",
        )
        assert broker_url(place.config, folder) == broker
        assert not isinstance(place.config, OperatorConfig)
        assert store_url(place.config, folder, {}) == store
    for path in directory.rglob("*.toml"):
        assert ("hunter" in path.read_text()) is (path.name == "credentials.toml"), path


def test_a_login_at_the_broker_alone_leaves_the_store_as_it_is(tmp_path: Path) -> None:
    directory = found(tmp_path / "f", broker="amqp://me:secret@localhost/")
    config = read_toml(directory / AGGREGATOR_TOML, AggregatorConfig)
    assert store_url(config, directory, {}) == STORE
    assert broker_url(config, directory) == "amqp://me:secret@localhost/"
    given = config.model_copy(update={"broker": "amqp://other:given@localhost/"})
    assert broker_url(given, directory) == "amqp://other:given@localhost/"
    (directory / "credentials.toml").write_text("[broker]\nuser = 3")
    with pytest.raises(ConfigError, match="has to hold user and password"):
        broker_url(config, directory)


def test_plain_text_to_other_machines_is_for_those_who_ask_for_it(tmp_path: Path) -> None:
    directory = found(
        tmp_path / "f", broker="amqp://broker.example/", store="s3://store.example/clinics", insecure=True
    )
    assert read_toml(directory / AGGREGATOR_TOML, AggregatorConfig).insecure
    assert read_config(directory / "sites" / "alpha" / WORKER_TOML, {}).insecure
    assert not read_toml(found(tmp_path / "g") / AGGREGATOR_TOML, AggregatorConfig).insecure


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sites": []}, "--site"),
        ({"sites": ["Alpha"]}, "'Alpha' cannot name a site"),
        ({"sites": ["aggregator"]}, "aggregator"),
        ({"sites": ["alpha", "alpha"]}, "named twice: alpha"),
        ({"cipher": "aegis"}, "cipher 'aegis' is unknown; did you mean 'aegis256'"),
        ({"name": "../up"}, "cannot name a federation"),
        ({"broker": "http://me:hunter2@broker.example"}, "unknown scheme 'http'; known: memory:, amqp://"),
        ({"broker": "amqp://me:hunter2@broker.example/"}, "plain text is only for localhost"),
        ({"broker": "amqps:///vhost"}, r"expected amqp\(s\)://"),
        ({"broker": "amqps://[::1/vhost"}, "broker URL: "),
        ({"store": "s3s://me:hunter2@store.example"}, "write s3://KEY:SECRET@host:port/bucket"),
        ({"store": "s3s://store.example:x/bucket"}, "the port has to be a number"),
        ({"store": "s3://store.example/bucket"}, "plain text is only for localhost"),
        ({"store": "file:srv/clinics"}, "three slashes"),
        ({"store": "/srv/clinics"}, "unknown scheme"),
        ({"store": "s3s://[::1/bucket"}, "not an IPv6 address"),
    ],
)
def test_a_federation_that_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        found(tmp_path / "f", **changes)
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "f").exists()


VAULT = """
from fledge import ConfigError, Scheme

class Vault(Scheme):
    def check(self, url, *, insecure):
        if "shelf" not in url:
            raise ConfigError("a vault's URL names a shelf")

    def open(self, url, connection):
        raise ConfigError(f"{connection.name} brings {connection.tls and connection.tls.ca} to {url}")
"""


def test_brokers_and_stores_of_packages_are_checked_get_their_logins_and_the_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"fledge.transports": {"vault": "vaults:Vault"}, "fledge.stores": {"vault": "vaults:Vault"}}
    install(tmp_path, monkeypatch, "vaults", {"vaults": VAULT}, groups)
    with pytest.raises(ConfigError, match="names a shelf"):
        found(tmp_path / "f", store="vault://me:hunter2@here")
    broker, store = "vault://me:hunter2@shelf/1", "vault://us:hunter3@shelf/2"
    directory = found(tmp_path / "f", broker=broker, store=store)
    path = directory / AGGREGATOR_TOML
    assert "hunter" not in path.read_text()
    config = read_toml(path, AggregatorConfig)
    assert (broker_url(config, directory), store_url(config, directory, {})) == (broker, store)
    path.write_text(path.read_text() + '[tls]\nca = "ca.pem"\ncert = "own.pem"\nkey = "own.key"\n')
    certificate = directory / "ca.pem"
    with pytest.raises(ConfigError, match=f"aggregator brings {certificate} to {broker}"), open_aggregator(path):
        pass


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    directory = found(tmp_path / "f")
    before = (directory / ROOT_KEYS).read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        found(directory)
    assert (directory / ROOT_KEYS).read_bytes() == before


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    path = found(tmp_path / "f") / "aggregator.keys"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_identity(path)


def test_a_file_that_holds_no_keys_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"hunter2")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold fledge keys") as refused:
        read_identity(path)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="is this the right kit"):
        read_identity(tmp_path / "nowhere")


def test_a_worker_is_opened_with_the_keys_of_its_own_site_only(tmp_path: Path) -> None:
    path = found(tmp_path / "f") / "sites" / "alpha" / WORKER_TOML
    path.write_text('site = "beta"\n' + path.read_text())
    with (
        pytest.raises(ConfigError, match="keys of alpha, the configuration is for beta"),
        open_worker(path),
    ):
        pass
