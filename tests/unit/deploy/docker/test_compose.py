"""The compose file, the images and the servers' settings: what can be said of them without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.docker.seaweedfs import identities
from deploy.servers.gitops import deployment_files, security_settings
from deploy.servers.members import BrokerMembers
from tests.support.compose import COMPOSE, DOCKER, ROOT, filled, raw, services, stages

SITES = ("site-1", "site-2", "site-3")
FEDERATION = ("setup", "deploy", "aggregator", *SITES)
SERVERS = ("rabbitmq", "minio", "front")
ONCE = ("setup", "deploy")
SERVICES = services()


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """What a service mounts: where, and whether for reading alone."""
    found = {}
    for line in SERVICES[name].get("volumes", ()):
        source, target, *mode = line.split(":")
        found[source] = (target, mode == ["ro"])
    return found


def mounted_by(volume: str) -> set[str]:
    """The services that mount a volume."""
    return {name for name in SERVICES if volume in mounts(name)}


def test_every_part_of_a_federation_is_there() -> None:
    assert set(SERVICES) == {*FEDERATION, *SERVERS, "ctl"}
    assert "name" not in raw()  # older docker-compose refuses it


@pytest.mark.parametrize("name", SERVICES)
class TestEveryService:
    """What holds for all of them, whoever made the image."""

    def test_runs_as_an_ordinary_user_of_a_fixed_number(self, name: str) -> None:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", SERVICES[name]["user"])

    def test_has_no_rights_beyond_that_users(self, name: str) -> None:
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"cap_add", "privileged", "devices", "pid", "ipc"} & service.keys()

    def test_writes_to_named_volumes_and_a_temporary_folder_only(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        # SeaweedFS does not start without the second: the places of its sockets cannot be chosen.
        temporary = ["/var/tmp", str(Path("/", "tmp"))] if name == "minio" else ["/var/tmp"]
        assert [entry.partition(":")[0] for entry in service["tmpfs"]] == temporary
        for source, (_, reading) in mounts(name).items():
            assert source in raw()["volumes"] or (reading and (ROOT / source).is_file()), source

    def test_has_an_image_that_is_pinned_and_can_be_exchanged(self, name: str) -> None:
        written = raw()["services"][name]["image"]
        assert re.fullmatch(r"\$\{FLEDGE_\w+_IMAGE:-[^}]+\}|\$\{FLEDGE_IMAGE:-[^}]+\}", written)
        image, _, tag = filled(written).partition(":")
        assert image
        assert tag not in ("", "latest")

    def test_is_asked_whether_it_works_unless_it_ends_by_itself(self, name: str) -> None:
        service = SERVICES[name]
        if name in (*ONCE, "ctl"):
            assert service["healthcheck"] == {"disable": True}
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
            assert service["restart"] == "unless-stopped"

    def test_has_no_secret_in_clear(self, name: str) -> None:
        for key, value in SERVICES[name].get("environment", {}).items():
            if re.search("PASS|SECRET|KEY|TOKEN|LOGIN", key):
                assert key.endswith("_FILE"), key
                assert value.startswith("/"), key


def test_port_443_is_all_that_is_open_and_management_is_for_this_machine() -> None:
    open_ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert open_ports.pop("front") == ["443:443"]
    for ports in open_ports.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_variable_in_a_command_is_one_word() -> None:
    """podman-compose takes a command apart before it looks for variables, and finds no closing brace."""
    for name, service in raw()["services"].items():
        for words in (service.get("command", ""), service.get("entrypoint", "")):
            for word in words.split() if isinstance(words, str) else words:
                assert word.count("${") == word.count("}"), (name, word)


def test_nothing_is_on_a_network_with_a_way_out_but_what_publishes_a_port() -> None:
    networks: dict[str, Any] = raw()["networks"]
    closed = {"internal": True, "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"}}
    published = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
    assert {name for name, network in networks.items() if network != closed} == {"edge", "pages"}
    assert networks["edge"] == networks["pages"] == published
    assert members("edge") == {"front"}
    assert members("pages") == {"rabbitmq"}
    assert SERVICES["setup"]["network_mode"] == "none"


def test_a_site_reaches_the_front_door_and_nothing_else() -> None:
    for name, network in (*((site, site) for site in SITES), ("ctl", "operator")):
        assert SERVICES[name]["networks"] == [network]
        assert members(network) == {name, "front"}


def members(network: str) -> set[str]:
    """The services on a network."""
    return {name for name, service in SERVICES.items() if network in service.get("networks", ())}


def test_the_front_door_goes_by_the_names_that_kits_have() -> None:
    doors = (DOCKER / "front.cfg").read_text(encoding="utf-8")
    setup = (DOCKER / "demo-setup.sh").read_text(encoding="utf-8")
    for network in ("hub", *SITES, "operator"):
        broker, store = SERVICES["front"]["networks"][network]["aliases"]
        assert f"FLEDGE_BROKER_NAME-{broker}}}" in doors
        assert f"FLEDGE_STORE_NAME-{store}}}" in doors
        assert f"FLEDGE_DEMO_BROKER:-{broker}:443" in setup
        assert f"FLEDGE_DEMO_STORE:-{store}:443" in setup


def test_each_kit_is_seen_by_its_owner_alone() -> None:
    for site in SITES:
        assert mounted_by(site) == {"setup", site}
    assert mounted_by("operator") == {"setup", "ctl"}
    assert mounted_by("hub") == {"setup", "aggregator", "deploy"}
    assert mounted_by("provisioner") == {"setup"}
    for volume, server in (("broker", "rabbitmq"), ("front", "front"), ("store", "minio")):
        assert mounted_by(volume) == {"setup", server}
        assert mounts(server)[volume] == ("/etc/fledge", True)
    assert set(raw()["volumes"]) == {volume for name in SERVICES for volume in mounts(name) if "/" not in volume}


def test_setup_has_a_folder_for_everything_it_makes() -> None:
    image = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    for volume, (target, reading) in mounts("setup").items():
        assert target == f"/setup/{volume}"
        assert not reading
        assert f" {target}" in image  # a fresh volume takes owner and mode from there


def test_nothing_starts_before_what_it_needs() -> None:
    for name in SERVICES:
        for needed, how in SERVICES[name].get("depends_on", {}).items():
            done = needed in ONCE
            assert how["condition"] == ("service_completed_successfully" if done else "service_healthy"), (name, needed)
    for name in ("aggregator", *SITES):
        assert {"deploy", "front"} <= SERVICES[name]["depends_on"].keys()
    assert "rabbitmq" in SERVICES["deploy"]["depends_on"]
    assert "setup" in SERVICES["rabbitmq"]["depends_on"]


def test_a_worker_or_aggregator_is_healthy_as_its_image_says() -> None:
    for service in ("aggregator", *SITES):
        stage = stages()[SERVICES[service]["build"]["target"]]
        assert SERVICES[service]["healthcheck"]["test"] == ["CMD", *stage.healthcheck] == ["CMD", "fledge-healthy"]


def test_no_health_is_asked_for_by_a_program_that_takes_a_second_of_processor() -> None:
    for name, service in SERVICES.items():
        asked = service["healthcheck"].get("test", ["CMD", "true"])
        assert not [word for word in ("python", "rabbitmq-diagnostics", "rabbitmqctl") if word in " ".join(asked)], name
        assert not re.search(r"\bfledge ", " ".join(asked)), name


def test_the_images_run_fledge_as_an_ordinary_user() -> None:
    found = stages()
    assert list(found)[-1] == "site"
    for name in ("hub", "demo", "site"):
        assert found[name].user == SERVICES["aggregator"]["user"] == "10001:10001"
        assert found[name].entrypoint == ("fledge-entrypoint",)
    assert found["site"].command == found["demo"].command == ("worker", "--kit", ".")
    # The demo begins with a run of its own; elsewhere runs come from operators.
    assert SERVICES["aggregator"]["command"].split() == [*found["hub"].command, "--run", "run"]
    for service in (*FEDERATION, "ctl"):
        assert SERVICES[service]["build"]["target"] in found


def test_an_operator_starts_nobody_by_asking() -> None:
    assert not SERVICES["ctl"]["depends_on"]


def test_the_images_install_from_the_constraints_and_name_no_index() -> None:
    script = (DOCKER / "install.sh").read_text(encoding="utf-8")
    assert '-c "$source/constraints.txt"' in script
    # What the Dockerfile says has no default: an index is whoever builds.
    assert "index-url" not in script
    assert re.findall(r"PIP_\w*INDEX_URL=(\S+)", script) == ['"$TORCH_INDEX_URL"', "''"]
    image = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG (\w+INDEX_URL)(.*)$", image, re.MULTILINE)) == {
        (name, "") for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX_URL")
    }


def test_the_broker_lets_nobody_in_but_by_certificate() -> None:
    settings = (DOCKER / "rabbitmq.conf").read_text(encoding="utf-8").splitlines()
    for line in security_settings("/etc/fledge"):
        assert line in settings
    assert "listeners.tcp = none" in settings
    assert not [line for line in settings if re.match(r"(default_|management\.tcp|auth_mechanisms\.[^1])", line)]


def test_the_store_knows_what_each_identity_may_do() -> None:
    names = ("aggregator", "sign-uploads", "sign-downloads", "site-north", "operator-lead")
    store = {"identities": [{"name": name, "access_key": name.upper(), "secret_key": "s"} for name in names]}
    made = identities("clinics", store)
    known = {each["name"]: each for each in made["identities"]}
    assert known["site-north"]["credentials"] == [{"accessKey": "SITE-NORTH", "secretKey": "s"}]
    assert all(each["policyNames"] == [name] and "actions" not in each for name, each in known.items())
    policies = {each["name"]: json.loads(each["content"]) for each in made["policies"]}
    written = deployment_files(
        "fl", "clinics", BrokerMembers(logins=(), sites=("north",), operators=("lead",), gone=())
    )
    assert set(policies) == set(names)
    for name in names[1:]:
        assert policies[name] == json.loads(written[f"s3/{name}.json"])
    *same, bucket = policies["aggregator"].pop("Statement")
    assert policies["aggregator"] | {"Statement": same} == json.loads(written["s3/aggregator.json"])
    assert (bucket["Action"], bucket["Resource"]) == (["s3:CreateBucket"], ["arn:aws:s3:::clinics"])


def test_the_store_is_reached_by_the_front_door_alone() -> None:
    assert SERVICES["minio"]["networks"] == ["vault"]
    assert members("vault") == {"minio", "front"}


@pytest.mark.parametrize("script", sorted(path.name for path in DOCKER.glob("*.sh")))
def test_the_scripts_are_for_any_shell(script: str) -> None:
    assert (DOCKER / script).read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(DOCKER / script)], check=True)


def linted(program: str, *arguments: str, **environment: str) -> None:
    """Run a linter over its files; skip where it is not installed, but fail where everything has to be tested."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        if os.environ.get("CI") and program != "docker-compose":  # which `make test` does not set up
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [found, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    linted("hadolint", str(DOCKER / "Dockerfile"))


def test_compose_itself_takes_the_file() -> None:
    linted("docker-compose", "-f", str(COMPOSE), "config", "-q")


def test_haproxy_takes_the_front_doors_settings(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    files = [str(tmp_path / name) for name in ("server.pem.key", "server.pem")]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", files[0]]
    command = ["openssl", "req", "-x509", *key, "-out", files[1], "-subj", "/CN=store"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.copy(files[1], tmp_path / "ca.pem")
    linted("haproxy", "-c", "-q", "-f", str(DOCKER / "front.cfg"), FLEDGE_FRONT_FILES=str(tmp_path))
