from __future__ import annotations

import hashlib
import io
import random
import stat
import subprocess
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pyzipper
import yaml

from aggregator.config import AggregatorConfig
from broker.runtime.settings import read_toml
from deploy.provision import kit_files, kits, pki
from deploy.provision.kits import MANIFEST, open_kit, read_kit, write_kit
from deploy.provision.project import Project, check_project
from deploy.provision.provisioning import provision
from fledge.operator.config import OperatorConfig
from protocol.errors import ConfigError
from worker.config import read_config
from worker.policy import OPEN, read_policy

NOW = datetime.now(UTC)
PASSWORD = "right-password"
FILES = {"operator.toml": b"x = 1\n", "tls/ca.pem": b"pem", "registry.bin": bytes(range(256)) * 40}


def project(**changes: object) -> Project:
    return check_project(
        {
            "name": "clinics",
            "aggregator": {"org": "centre", "address": "hub.example", "names": ["rabbitmq"]},
            "sites": [{"name": "north", "org": "nh"}],
            "operators": [{"name": "lead", "email": "lead@hub.example", "org": "nh", "roles": ["super"]}],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Everybody's kit, unpacked."""
    place = tmp_path_factory.mktemp("kits")
    for kit in provision(project(), place / "provisioner", NOW).kits:
        open_kit(kit.path, kit.password, place / kit.name, NOW)
    return {name: place / name for name in ("aggregator", "north", "lead")}


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    write_kit(tmp_path / "kit.zip", FILES, PASSWORD)
    return tmp_path / "kit.zip"


def test_a_kit_comes_out_as_it_went_in(zipped: Path) -> None:
    assert read_kit(zipped, PASSWORD) == FILES
    assert stat.S_IMODE(zipped.stat().st_mode) == 0o600


def test_every_file_is_encrypted_by_aes_256(zipped: Path) -> None:
    with pyzipper.AESZipFile(zipped) as zip:
        entries = zip.infolist()
    assert {entry.wz_aes_strength for entry in entries} == {3}
    # AE-2: the checksum of the plaintext is not told.
    assert {(entry.wz_aes_version, entry.CRC) for entry in entries} == {(2, 0)}
    assert FILES["registry.bin"][:64] not in zipped.read_bytes()


def test_a_wrong_password_opens_nothing(zipped: Path) -> None:
    for wrong in ("wrong", PASSWORD.upper(), " ", "pässwörd"):
        with pytest.raises(ConfigError, match=r"the password does not open .*as `fledge provision` showed it"):
            read_kit(zipped, wrong)


def test_passwords_are_random_and_easy_to_read_out() -> None:
    made = {kits.random_code(5) for _ in range(200)}
    assert len(made) == 200
    assert {len(word) for word in made} == {29}
    assert not set("".join(made)) & set("01ilo")


def test_no_changed_byte_gets_through(zipped: Path) -> None:
    whole = zipped.read_bytes()
    dice = random.Random(7)
    for _ in range(150):
        place = dice.randrange(len(whole))
        zipped.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :])
        with suppress(ConfigError):
            assert read_kit(zipped, PASSWORD) == FILES  # dates and the like: nothing that is unpacked


def test_no_cut_kit_gets_through(zipped: Path) -> None:
    whole = zipped.read_bytes()
    for length in [0, 1, *range(30, len(whole) - 1, 997), len(whole) - 1]:
        zipped.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="damaged or not a kit"):
            read_kit(zipped, PASSWORD)


Change = Callable[[pyzipper.AESZipFile], None]


def forged(path: Path, change: Change, *, files: Mapping[str, bytes] = FILES, **options: object) -> Path:
    """A zip under the right password that holds what `change` adds to the files of a kit."""
    buffer = io.BytesIO()
    given = {"compression": pyzipper.ZIP_STORED, "encryption": pyzipper.WZ_AES, **options}
    with pyzipper.AESZipFile(buffer, "w", **given) as zip:
        zip.setpassword(PASSWORD.encode())
        for name, data in files.items():
            zip.writestr(name, data)
        manifest = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
        zip.writestr(MANIFEST, manifest)
        change(zip)
    path.write_bytes(buffer.getvalue())
    return path


def nothing(zip: pyzipper.AESZipFile) -> None:
    """Change nothing."""


def extra(name: str, mode: int = 0, data: bytes = b"x") -> Change:
    def change(zip: pyzipper.AESZipFile) -> None:
        entry = pyzipper.zipfile_aes.AESZipInfo(name)
        entry.external_attr = mode << 16
        zip.writestr(entry, data)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (extra("../up"), "holds '../up', which no kit does"),
        (extra("/etc/passwd"), "which no kit does"),
        (extra("a\\..\\b"), "which no kit does"),
        (extra("CON"), "which no kit does"),
        (extra("tls/"), "which no kit does"),
        (extra("tls"), "which no kit does"),
        (extra("TLS/ca.pem"), "two of one name"),
        (extra("site.keys", stat.S_IFLNK | 0o777, b"/etc/passwd"), "site.keys is not a plain file"),
        (extra("site.keys", stat.S_IFIFO), "site.keys is not a plain file"),
        (extra("site.keys"), "not those it was made of"),
        (extra("site.keys", data=bytes(1024**2 + 1)), "no sensible size"),
        (extra("site.keys", data=b""), "no sensible size"),
        (lambda zip: [extra(f"n{i}")(zip) for i in range(40)] and None, "too many files"),
    ],
)
def test_whatever_a_zip_can_hold_only_kits_are_unpacked(tmp_path: Path, change: Change, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_kit(forged(tmp_path / "kit.zip", change), PASSWORD)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        forged(tmp_path / "kit.zip", extra("registry.bin"))
    with pytest.raises(ConfigError, match="two of one name"):
        read_kit(tmp_path / "kit.zip", PASSWORD)


def test_renamed_dropped_and_swapped_files_are_noticed(zipped: Path) -> None:
    whole = zipped.read_bytes()
    for old, new in ((b"tls/ca.pem", b"policy.tom"), (b"operator.toml", b"aggregator.to")):
        zipped.write_bytes(whole.replace(old, new))
        with pytest.raises(ConfigError, match="no kit does"):
            read_kit(zipped, PASSWORD)
    zipped.write_bytes(whole.replace(b"tls/ca.pem", b"start.sh\0\0").replace(b"start.sh\0\0", b"site.keys\0"))
    with pytest.raises(ConfigError):
        read_kit(zipped, PASSWORD)
    pairs = forged(zipped, nothing, files={"site.keys": b"a", "tls/ca.pem": b"b"}).read_bytes()
    zipped.write_bytes(pairs.replace(b"site.keys", b"README.md"))
    with pytest.raises(ConfigError, match="not those it was made of"):
        read_kit(zipped, PASSWORD)


@pytest.mark.parametrize(
    "options",
    [
        {"encryption_kwargs": {"nbits": 128}},
        {"compression": pyzipper.ZIP_DEFLATED},
    ],
    ids=["aes-128", "compressed"],
)
def test_a_zip_that_is_packed_otherwise_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    path = forged(tmp_path / "kit.zip", nothing, **options)
    with pytest.raises(ConfigError, match="not encrypted as fledge does it"):
        read_kit(path, PASSWORD)


def test_plain_zips_and_the_old_zip_encryption_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kit.zip"
    with zipfile.ZipFile(path, "w") as zip:
        zip.writestr("README.md", b"x")
    raw = bytearray(path.read_bytes())
    with pytest.raises(ConfigError, match="not encrypted as fledge does it"):
        read_kit(path, PASSWORD)
    # The bit says encrypted, but no entry names AES: what is left is the broken cipher of old zips.
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="not encrypted as fledge does it"):
        read_kit(path, PASSWORD)


def test_a_file_that_is_no_zip_or_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kit.zip"
    path.write_bytes(b"%PDF-1.7" * 100)
    with pytest.raises(ConfigError, match="damaged or not a kit"):
        read_kit(path, PASSWORD)
    with path.open("wb") as file:
        file.truncate(5 * 1024**2)
    with pytest.raises(ConfigError, match="larger than"):
        read_kit(path, PASSWORD)
    with pytest.raises(ConfigError, match="No such file"):
        read_kit(tmp_path / "none.zip", PASSWORD)


def test_a_kit_is_unpacked_for_its_owner_alone(unpacked: Mapping[str, Path]) -> None:
    for folder in unpacked.values():
        paths = list(folder.rglob("*"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
        assert {stat.S_IMODE(path.stat().st_mode) for path in [folder, folder / "tls"]} == {0o700}
        assert not list(folder.parent.glob(".*"))


def test_a_folder_that_is_there_is_never_written_to(unpacked: Mapping[str, Path], tmp_path: Path) -> None:
    kit = provision(project(), tmp_path / "p", NOW).kits[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        open_kit(kit.path, kit.password, tmp_path / "mine", NOW)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_kit_is_not_unpacked_on_a_machine_whose_clock_is_wrong(tmp_path: Path) -> None:
    kit = provision(project(), tmp_path / "p", NOW).kits[1]
    open_kit(kit.path, kit.password, tmp_path / "slow", NOW - timedelta(minutes=10))
    with pytest.raises(ConfigError, match="set the clock"):
        open_kit(kit.path, kit.password, tmp_path / "north", NOW - timedelta(days=1))
    with pytest.raises(ConfigError, match="--renew north"):
        open_kit(kit.path, kit.password, tmp_path / "north", NOW + timedelta(days=400))
    assert not (tmp_path / "north").exists()


def test_a_kit_whose_parts_belong_to_different_people_is_refused(tmp_path: Path) -> None:
    made = {kit.name: kit for kit in provision(project(), tmp_path / "p", NOW).kits}
    other = {kit.name: kit for kit in provision(project(), tmp_path / "q", NOW).kits}
    ours, theirs = (read_kit(kits["north"].path, kits["north"].password) for kits in (made, other))
    for name, says in [
        ("site.keys", "not those of the registry"),
        ("registry.bin", "does not fit together"),
        ("tls/client.key", "do not belong together"),
    ]:
        with pytest.raises(ConfigError, match=says):
            kits.check_kit({**ours, name: theirs[name]}, NOW)
    with pytest.raises(ConfigError, match="not complete"):
        kits.check_kit({name: data for name, data in ours.items() if name != "tls/ca.pem"}, NOW)


def test_each_program_reads_the_configuration_in_its_kit(unpacked: Mapping[str, Path]) -> None:
    site = read_config(unpacked["north"] / "worker.toml", {})
    hub = read_toml(unpacked["aggregator"] / "aggregator.toml", AggregatorConfig)
    operator = read_toml(unpacked["lead"] / "operator.toml", OperatorConfig)
    for config, folder in ((site, "north"), (hub, "aggregator"), (operator, "lead")):
        assert (config.federation, config.broker) == ("clinics", "amqps://hub.example:5671/clinics")
        assert config.tls is not None
        named = (config.keys, config.registry, config.tls.ca, config.tls.cert, config.tls.key)
        assert all((unpacked[folder] / path).is_file() for path in named)
        assert not config.insecure
    assert (site.site, site.access, site.store) == ("north", "credentials", "s3s://hub.example:443/clinics")
    assert hub.store == site.store == operator.store
    assert operator.access == "credentials"
    assert hub.root == site.root == operator.root


def test_the_policy_in_a_kit_narrows_nothing_until_its_lines_are_switched_on(unpacked: Mapping[str, Path]) -> None:
    path = unpacked["north"] / "policy.toml"
    assert read_policy(path) == OPEN
    lines = path.read_text().splitlines()
    on = "\n".join(
        line[2:] if line.startswith(("# [", "# ")) and ("=" in line or "[[" in line) else "" for line in lines
    )
    (path.parent / "on.toml").write_text(on)
    policy = read_policy(path.parent / "on.toml")
    assert policy.model_fields_set == set(type(policy).model_fields)
    (path.parent / "on.toml").unlink()


def test_credentials_for_the_store_are_a_members_own(unpacked: Mapping[str, Path]) -> None:
    own, lead, hub = (
        tomllib.loads((unpacked[name] / kit_files.CREDENTIALS).read_text()) for name in ("north", "lead", "aggregator")
    )
    assert set(own) == set(lead) == {"access_key", "secret_key"}
    assert set(hub) == {"access_key", "secret_key", "upload", "download"}
    secrets = [each["secret_key"] for each in (own, lead, hub, hub["upload"], hub["download"])]
    assert len(set(secrets)) == 5
    assert {len(secret) for secret in secrets} == {40}


def test_with_signed_urls_nobody_but_the_hub_has_an_identity_at_the_store(tmp_path: Path) -> None:
    kits_made = {kit.name: kit for kit in provision(project(access="presigned"), tmp_path / "p", NOW).kits}
    for name, configuration in (("north", "worker.toml"), ("lead", "operator.toml")):
        files = read_kit(kits_made[name].path, kits_made[name].password)
        assert kit_files.CREDENTIALS not in files
        assert tomllib.loads(files[configuration].decode())["access"] == "presigned"


def test_scripts_and_compose_files_are_well_formed(unpacked: Mapping[str, Path]) -> None:
    for name, service in (("north", "worker"), ("aggregator", "aggregator")):
        subprocess.run(["sh", "-n", unpacked[name] / "start.sh"], check=True)
        compose = yaml.safe_load((unpacked[name] / "docker-compose.yml").read_text())
        described = compose["services"][service]
        assert described["read_only"]
        assert "ports" not in described
        assert described["healthcheck"]["test"] == ["CMD", "fledge-healthy"]
        unit = (unpacked[name] / f"fledge-{service}.service").read_text()
        assert "ExecStart=/bin/sh start.sh\n" in unit


def test_no_placeholder_is_left_in_a_kit(unpacked: Mapping[str, Path]) -> None:
    for folder in unpacked.values():
        for path in folder.rglob("*"):
            if path.suffix in (".md", ".toml", ".yml", ".sh", ".service"):
                assert "@{" not in path.read_text(), path


def test_a_kit_holds_nothing_that_is_not_on_the_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a kit"):
        write_kit(tmp_path / "kit.zip", {"root.keys": b"x"}, PASSWORD)
    assert not (tmp_path / "kit.zip").exists()


def test_the_servers_kit_has_their_certificates(unpacked: Mapping[str, Path]) -> None:
    for server in kit_files.SERVERS:
        pem, key = ((unpacked["aggregator"] / "servers" / f"{server}.{end}").read_bytes() for end in ("pem", "key"))
        assert pki.public_key(pem) == pki.public_key(key)
        assert pki.covers(pem, ["hub.example", "rabbitmq"])
