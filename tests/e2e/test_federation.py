"""A federation as hospitals join one: kits, mutual TLS, least privilege, one site behind a proxy, one without
credentials for the store, orders from an operator's laptop, a site cut off in mid-run and another one added."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time

import pytest

from fledge.health import site_health
from fledge.inference import SiteModels
from tests.e2e.walk import KIT, ROOT, Walk, join

pytestmark = pytest.mark.servers

RUN = "walk"
CANARY = "MEIER^HANS-1957"
"""A patient's name in a path of one site, which nobody else may ever see."""


def found(walk: Walk) -> None:
    """From a project file to three sites that the hub has accepted; nothing is trained yet."""
    walk.found()
    quoted = "west:s3cr%3At%2F%40proxy"
    walk.change("north", ("^state = .*$", f'state = "{CANARY}"'), options="site = 0\nseconds = 0.1")
    walk.change("south", ("^access = .*$", 'access = "presigned"'), options="site = 1\nseconds = 0.1")
    (walk.kit("south") / "credentials.toml").unlink()
    assert walk.proxy is not None
    walk.change(
        "west",
        (r"^broker = .*$", 'broker = "amqps://broker.hub.example:443/clinics"'),
        (r"^store = .*$", 'store = "s3s://store.hub.example:443/clinics"'),
        (r"^# proxy = .*$", f'proxy = "http://{quoted}@127.0.0.1:{walk.proxy.port}"'),
        options="site = 2\nseconds = 0.1",
    )
    for site in ("north", "south", "west"):
        join(walk, site)


def bring(walk: Walk) -> str:
    """A researcher brings a run with its code, sites take it over, it starts; returns the code's digest."""
    code = walk.folder / "code"
    code.mkdir()
    shutil.copy(ROOT / "tests" / "e2e" / "trainers.py", code / "trainer.py")
    run = walk.folder / RUN
    walk.fledge("init-run", "--code", str(code), "-o", str(run), "--option", "elements=4096")
    settings = (run / "run.toml").read_text()
    for old, new in (
        ("^heartbeat = .*$", "heartbeat = 2.0"),
        ("^# max_wait = .*$", "max_wait = 3.0"),
        (r"^\[strategy\]$", "[strategy]\nbuffer = 2"),
        (r"^\[stop\]$", "[stop]\nmax_versions = 0"),
    ):
        settings, count = re.subn(old, new, settings, count=1, flags=re.MULTILINE)
        assert count == 1, (old, settings)
    (run / "run.toml").write_text(settings)
    [created] = walk.ctl("run", "create", str(run))
    digest: str = created["values"]["code"]
    deployed = walk.ctl("run", "deploy", RUN)
    assert {answer["sender"] for answer in deployed if answer["ok"]} == {"north", "south", "west"}
    assert all(answer["values"]["code"] == digest for answer in deployed)
    [listed] = walk.ctl("run", "list")
    assert (listed["values"]["run"], listed["values"]["state"]) == ([RUN], ["created"])
    assert not walk.programs["north"].count("training.started")
    assert walk.ctl("run", "start", RUN)[0]["ok"]
    return digest


def steer(walk: Walk) -> None:
    """A run is aborted and goes on; one site leaves it and joins it again; strangers to it are refused."""
    assert walk.ctl("run", "abort", RUN, "--yes")[0]["ok"]
    ended = walk.versions()
    [listed] = walk.ctl("run", "list")
    assert listed["values"]["state"] == ["aborted"]
    assert walk.ctl("run", "resume", RUN)[0]["ok"]
    walk.grow()
    assert walk.versions() > ended
    assert walk.ctl("run", "leave", RUN, "north", "--yes")[0]["ok"]
    walk.wait(lambda: "left" in str(walk.ctl("status")[0]["values"]["trouble"]), "north shows that it left the run")
    assert walk.ctl("run", "join", RUN, "north")[0]["ok"]
    [refused] = walk.ctl("run", "deploy", RUN, "south", by="it-north", code=1)
    assert refused["reason"] == "not_authorized"
    merged = walk.merged("north")
    walk.wait(lambda: walk.merged("north") > merged, "north contributes again")


def take_models(walk: Walk) -> None:
    """The model leaves as a file, the same from hub and laptop; a published one is found again by its channel."""
    hub = walk.kit("aggregator") / "aggregator.toml"
    at_hub, exported, pulled = (walk.folder / f"{name}.safetensors" for name in ("hub", "exported", "pulled"))
    said = walk.fledge("export", RUN, "-o", str(at_hub), "--config", str(hub))
    assert "version" in said
    assert at_hub.stat().st_size > 4096 * 4
    walk.ctl("model", "export", RUN, "-o", str(exported))
    assert exported.read_bytes() == at_hub.read_bytes()
    walk.ctl("model", "publish", RUN, "--name", "walk-model", "--application", "walking", "--label", "test")
    walk.ctl("model", "promote", "walk-model", "production")
    [found] = walk.ctl("model", "search", "--channel", "production")
    assert found["values"]["name"] == ["walk-model"]
    walk.ctl("model", "pull", "production", "-o", str(pulled))
    assert pulled.read_bytes() == at_hub.read_bytes()
    assert "all the same bytes" in walk.fledge("replay", RUN, "--config", str(hub))


def hold_models(walk: Walk) -> None:
    """A site that took part has the last version in its hands, and can read it without anybody, by URLs or not."""
    [listed] = walk.ctl("run", "list")
    [last] = listed["values"]["version"]
    for site in ("north", "south"):
        walk.wait(lambda site=site: walk.programs[site].count("model.kept", version=last) > 0, f"{site} has {last}")
        assert f"version {last}" in walk.fledge("site", "models", "--kit", str(walk.kit(site)))
        models = SiteModels(walk.kit(site) / "worker.toml")
        kept = models.version(RUN, "global")
        model, spec = models.opened(kept)
        assert kept.version == last
        sizes = {name: array.shape for name, array in models.weights(kept, model, spec, frozenset()).tensors()}
        assert sizes == {tensor.name: tensor.shape for tensor in spec.tensors}


def look_after(walk: Walk) -> None:
    """Hospital IT is told of its own site alone, by the hub and beside the worker; what it keeps, others can check."""
    [status] = walk.ctl("status", by="it-north")
    assert (status["values"]["site"], status["values"]["run"]) == (["north"], RUN)
    [queues] = walk.ctl("queue", "list", by="it-north")
    assert {queue.partition(".")[2] for queue in queues["values"]["queue"]} == {"north"}
    [refused] = walk.ctl("site", "show", "south", by="it-north", code=1)
    assert "you see north alone" in refused["text"]
    [mine] = walk.ctl("update", "list", RUN, "--state", "merged", by="it-north")
    assert set(mine["values"]["site"]) == {"north"}
    update = mine["values"]["update"][-1]
    attested, kept, ledger = (str(walk.folder / name) for name in ("attested.json", "kept.json", "ledger.jsonl"))
    walk.ctl("update", "receipt", update, "-o", attested, by="it-north")
    known = json.loads(walk.fledge("site", "receipts", "--kit", str(walk.kit("north")), "--limit", "9999", "--json"))
    assert "merged" in {each["outcome"] for each in known if each["update"].startswith(update)}
    walk.fledge("site", "receipt", update, "--kit", str(walk.kit("north")), "-o", kept)
    for path, kit in ((attested, "south"), (kept, "lead"), (kept, "aggregator")):
        assert "nothing was altered" in walk.fledge("receipt", "verify", path, "--kit", str(walk.kit(kit)))
    walk.fledge("audit", "export", "-o", ledger, "--config", str(walk.kit("aggregator") / "aggregator.toml"))
    assert "nothing was altered" in walk.fledge("audit", "verify", ledger, "--kit", str(walk.kit("south")))


def health(walk: Walk, site: str) -> str:
    """Why a site is not healthy; empty if it is."""
    return site_health(walk.kit(site)).text


def renew(walk: Walk) -> None:
    """Put renewed certificates over the old ones, then let the broker end every connection."""
    walk.fledge("provision", "--renew", "-o", str(walk.provisioner))
    names = ("aggregator", "north", "south", "west")
    for name in names:
        [renewed] = (walk.provisioner / "renewed" / name).rglob("client.pem")
        shutil.copy(renewed, walk.kit(name) / "tls" / "client.pem")
    old = {each["name"] for each in walk.node.api("GET", "connections")}
    for connection in old:
        walk.node.api("DELETE", "connections", connection)

    def back() -> bool:
        users = {each.get("user") for each in walk.node.api("GET", "connections") if each["name"] not in old}
        return users >= set(names)

    walk.wait(back, "everybody is connected again")


def add_a_fourth(walk: Walk, digest: str) -> None:
    """A fourth site makes its own keys, joins and contributes; nobody else's files change."""
    code = re.search(
        r"([0-9a-z]{4,}(?:-[0-9a-z]{4,})+)",
        walk.fledge("enrol", "east", "--federation", "clinics", "-o", str(walk.folder / "east")),
    )
    assert code is not None
    before = {
        path: path.read_bytes() for path in walk.kit("north").rglob("*") if path.suffix in (".bin", ".toml", ".pem")
    }
    walk.provision("  - {name: east, org: east-hospital, enrol: true}", "  east-hospital: [general, relaxed]")
    secret = walk.folder / "east.code"
    secret.write_text(code.group(1))
    [request] = (walk.folder / "east").glob("*.request")
    accepted = walk.fledge(
        "provision", "--accept", str(request), "--code-file", str(secret), "-o", str(walk.provisioner)
    )
    [(_, kit, password)] = KIT.findall(accepted)
    secret.write_text(password)
    walk.fledge("enrol", "--finish", kit, str(walk.folder / "east"), "--password-file", str(secret))
    shutil.copytree(walk.folder / "east", walk.kit("east"))
    walk.deploy()
    assert walk.store is not None
    walk.store.keys = walk.identities()
    walk.store.restart()
    walk.ctl("registry", "put", str(walk.provisioner / "registry.bin"))
    walk.change("east", options="site = 3\nseconds = 0.1")
    join(walk, "east")
    [deployed] = walk.ctl("run", "deploy", RUN, "east")
    assert deployed["values"]["code"] == digest
    walk.wait(lambda: walk.merged("east") > 0, "east contributes")
    assert {path: path.read_bytes() for path in before} == before


def test_a_federation_from_kits_to_an_exported_model(walk: Walk) -> None:
    found(walk)
    digest = bring(walk)
    walk.wait(lambda: all(walk.merged(site) > 0 for site in ("north", "south", "west")), "every site contributes")
    assert walk.proxy is not None
    assert {asked.target for asked in walk.proxy.asked} == {"broker.hub.example:443", "store.hub.example:443"}
    assert not (walk.folder / "refused").exists()

    # An operator watches and steers; one without the right is refused, and the ledger shows it.
    [status] = walk.ctl("status")
    assert status["values"]["site"] == ["north", "south", "west"]
    assert walk.ctl("run", "pause")[0]["ok"]
    [refused] = walk.ctl("run", "resume", by="it-north", code=1)
    assert refused["reason"] == "not_authorized"
    assert walk.ctl("run", "resume")[0]["ok"]
    walk.grow()
    assert any("it-north" in entry for entry in walk.ctl("audit", "log", "--kind", "command")[0]["values"]["entry"])
    [doctor] = walk.ctl("--timeout", "60", "site", "doctor", "north", by="it-north")
    assert "blocked" not in doctor["values"]["verdict"]
    [lines] = walk.ctl("logs", "north", by="it-north")
    assert any("update.settled" in line for line in lines["values"]["lines"])
    for question in (("file", "ls"), ("file", "pwd"), ("file", "env"), ("sys", "info")):
        walk.ctl(*question, "north", by="it-north")
    [drained] = walk.ctl("site", "drain", "north", by="it-north")
    assert drained["ok"]
    assert walk.ctl("site", "undrain", "north", by="it-north")[0]["ok"]
    look_after(walk)

    steer(walk)

    # Certificates are renewed while everything runs: whoever connects again shows the new one, and nobody is restarted.
    renew(walk)
    walk.grow()
    assert not [program.deaths for program in walk.programs.values() if program.deaths]

    # One site is cut off by an operator's word alone, in seconds; the root's signature follows; the run goes on.
    began = time.monotonic()
    assert walk.ctl("site", "revoke", "west", "--yes")[0]["ok"]
    walk.wait(lambda: walk.programs["aggregator"].count("site.cut_off", site="west") > 0, "west is cut off", 5)
    assert time.monotonic() - began < 5
    users = {user["name"] for user in walk.node.api("GET", "users")}
    assert "west" not in users
    # Either by the hub's own word, which may have reached it just before, or because the broker lets it in no more.
    walk.wait(lambda: "revoked" in health(walk, "west"), "west's health is red", 30)
    walk.programs["west"].stop(15)
    walk.fledge("provision", "--revoke", "west", "-o", str(walk.provisioner))
    walk.ctl("registry", "put", str(walk.provisioner / "registry.bin"))
    walk.grow()

    add_a_fourth(walk, digest)

    # The run ends by order, and the model is exported.
    assert walk.ctl("run", "stop", "--yes")[0]["ok"]
    take_models(walk)
    hold_models(walk)

    # What is private at a site was seen by nobody.
    assert (walk.kit("north") / CANARY / "worker.db").is_file()
    hub_log = (walk.folder / "aggregator.log").read_text()
    assert not [said for said in [*walk.said, hub_log] if CANARY in said or "MEIER" in said]
    keys = subprocess.run(["grep", "-rlF", "MEIER", str(walk.folder / "objects")], capture_output=True, check=False)
    assert keys.stdout == b""
