"""The doctor where all is as it should be: kits as provisioned, a broker as deployed, a store with identities."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.provision.custody import open_custody
from deploy.provision.kits import open_kit
from deploy.provision.provisioning import provision
from deploy.servers.apply import Management, apply_members
from deploy.servers.members import members_of
from fledge.bootstrap import open_aggregator
from fledge.doctor.adversarial import attack
from fledge.doctor.checks.local import check_keys, check_registry
from fledge.doctor.examine import examine
from fledge.doctor.findings import Verdict
from fledge.doctor.place import read_kit
from tests.support.command_line import fledge
from tests.support.ports import free_ports
from tests.support.rabbit import RabbitNode, require_rabbit
from tests.support.seaweed import FEDERATION, OPERATORS, SITES, Provisioned, SeaweedServer, require_seaweed
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers


@dataclass(frozen=True, slots=True)
class Whole:
    """A federation with both its servers."""

    federation: Provisioned
    store: SeaweedServer
    management: str
    """The URL of the broker's management, with a login."""

    def kit(self, name: str) -> Path:
        """Somebody's unpacked kit."""
        return self.federation.folder / name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    require_rabbit()
    require_seaweed()
    folder = tmp_path_factory.mktemp("whole")
    (folder / "broker").mkdir()
    node = RabbitNode(tls=folder / "broker", external_only=True)
    try:
        (port,) = free_ports(1)
        federation = Provisioned(folder, port, broker_port=node.amqps_port)
        hub = folder / "aggregator"
        shutil.copy(hub / "tls" / "ca.pem", folder / "broker" / "ca.pem")
        for kind in ("pem", "key"):
            shutil.copy(hub / "servers" / f"broker.{kind}", folder / "broker" / f"server.{kind}")
        node.start()
        place = read_kit(hub)
        _, registry = check_registry(place, check_keys(place)[1])
        assert registry is not None
        with Management(node.management_url) as management:
            apply_members(management, FEDERATION, members_of(registry))
        store = SeaweedServer(federation, folder / "data", folder / "log")
        yield Whole(federation, store, node.management_url)
        store.stop()
    finally:
        node.close()


@pytest.mark.parametrize("name", ["aggregator", SITES[0], OPERATORS[0]])
def test_whoever_has_a_kit_can_take_part(whole: Whole, name: str) -> None:
    report = examine(read_kit(whole.kit(name)), {}, machine=False)
    assert report.ok, report.lines()


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        (SITES[0], {"attack.unsigned", "attack.credentials"}),
        (SITES[1], {"attack.unsigned", "attack.credentials"}),
        ("aggregator", {"attack.unsigned", "attack.urls", "attack.signers"}),
    ],
)
def test_nothing_that_is_forbidden_works(whole: Whole, name: str, checks: set[str]) -> None:
    report = attack(read_kit(whole.kit(name)), {})
    assert report.ok, report.lines()
    verdicts = {finding.check: finding.verdict for finding in report.findings if finding.check in checks}
    assert verdicts == dict.fromkeys(checks, Verdict.GOOD), report.lines()
    assert not [finding for finding in report.findings if finding.check == "attack.every_key"]


def test_a_right_too_many_fails_loudly(whole: Whole) -> None:
    """The same site on the same server, which was told to let it delete."""
    told = whole.federation.identities
    before = told.read_text(encoding="utf-8")
    assert before.count('[\\"s3:PutObject\\"]') > 1
    whole.store.kill()
    try:
        told.write_text(before.replace('[\\"s3:PutObject\\"]', '[\\"s3:PutObject\\", \\"s3:DeleteObject\\"]'))
        whole.store.start()
        report = attack(read_kit(whole.kit(SITES[0])), {})
        assert not report.ok
        (finding,) = (finding for finding in report.findings if finding.check == "attack.credentials")
        assert finding.code == "allowed"
        assert f"delete up/{SITES[0]}" in finding.cause
        assert f"delete up/{SITES[1]}" not in finding.cause
    finally:
        whole.store.kill()
        told.write_text(before, encoding="utf-8")
        whole.store.start()


@pytest.mark.parametrize("right", ["s3:DeleteObject", pytest.param("s3:PutObject", marks=pytest.mark.long)])
def test_a_hub_that_lacks_rights_at_the_store_is_told(whole: Whole, right: str) -> None:
    told = whole.federation.identities
    before = told.read_text(encoding="utf-8")
    less = json.loads(before)
    policies = {policy["name"]: policy for policy in less["policies"]}
    for identity, lost in (("aggregator", right), ("sign-uploads", "s3:PutObject")):
        policies[identity]["content"] = policies[identity]["content"].replace(lost, "s3:GetBucketLocation")
    whole.store.kill()
    try:
        told.write_text(json.dumps(less), encoding="utf-8")
        whole.store.launch()
        report = examine(read_kit(whole.kit("aggregator")), {}, machine=False)
        verdicts = {finding.check: finding.verdict for finding in report.findings}
        assert verdicts["store.read"] == Verdict.GOOD
        assert verdicts["store.write"] == Verdict.BAD, report.lines()
        assert verdicts["store.urls"] == Verdict.WARNING, report.lines()
    finally:
        whole.store.kill()
        told.write_text(before, encoding="utf-8")
        whole.store.start()


def test_a_site_that_comes_later_joins_by_two_commands_at_the_hub(
    whole: Whole, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Last: from here on the federation has a site more."""
    place, hub, lead = whole.kit("provisioner"), whole.kit("aggregator"), whole.kit(OPERATORS[0])
    now = datetime.now(UTC)
    with open_custody(place, None, now) as custody:
        project = custody.state.project
    late = project.model_copy(update={"sites": (*project.sites, type(project.sites[0])(name="late", org="new"))})
    (made,) = provision(late, place, now).kits
    open_kit(made.path, made.password, tmp_path / "late", now)
    older = (hub / "registry.bin").read_bytes()

    monkeypatch.setenv("FLEDGE_MANAGEMENT", whole.management)
    told = whole.federation.identities
    told.chmod(0o640)
    with open_aggregator(hub / "aggregator.toml") as service:
        service.start()
        # The first command, and the second.
        done = fledge("deploy", "members", place, "--kit", hub, "--operator", lead, "--identities", told)
        whole.store.reload()
        assert done.returncode == 0, done.stderr
        listed = fledge("ctl", "--kit", lead, "--timeout", "30", "site", "list", "--json")
    assert '"late"' in listed.stdout, listed.stderr
    eventually(lambda: examine(read_kit(tmp_path / "late"), {}, machine=False).ok, "the site can take part", 30.0)
    report = attack(read_kit(tmp_path / "late"), {})
    assert report.ok, report.lines()

    assert stat.S_IMODE(told.stat().st_mode) == 0o640
    assert (hub / "registry.bin").read_bytes() == (place / "registry.bin").read_bytes()
    again = fledge("deploy", "broker", "--kit", hub)
    assert "nothing to change" in again.stdout, again.stderr
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "registry.bin").write_bytes(older)
    back = fledge("deploy", "members", tmp_path / "older", "--kit", hub)
    assert back.returncode == 2
    assert "bring the provisioner's newest" in back.stderr
