from __future__ import annotations

import fcntl
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.keyfiles import read_identity, replace_private
from deploy.provision import pki, provisioning
from deploy.provision.kits import read_kit
from deploy.provision.project import Project, check_project
from deploy.provision.provisioning import Provisioned, provision, reissue, renew, revoke
from protocol.cipher import Suite
from protocol.errors import ConfigError, Untrusted
from protocol.keys import Identity, Role
from protocol.registry import Registry, open_registry
from protocol.rights import Action

NOW = datetime.now(UTC)
SITES = [{"name": "north", "org": "nh"}, {"name": "south", "org": "sh"}]
LEAD = {"name": "lead", "email": "lead@hub.example", "org": "nh", "roles": ["site_it"]}


def project(**changes: Any) -> Project:
    plain = {"name": "clinics", "aggregator": {"org": "centre", "address": "hub.example"}, "sites": SITES}
    return check_project({**plain, "operators": [LEAD], **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "provisioner"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def registry(folder: Path) -> Registry:
    root = bytes(read_identity(folder / "root.keys").sign.verify_key)
    return open_registry((folder / "registry.bin").read_bytes(), root, "clinics")


def names(outcome: Provisioned) -> list[str]:
    return [kit.name for kit in outcome.kits]


def test_the_first_time_everybody_gets_a_kit(folder: Path) -> None:
    outcome = provision(project(), folder, NOW)
    assert names(outcome) == ["aggregator", "north", "south", "lead"]
    assert len({kit.password for kit in outcome.kits}) == 4
    assert outcome.changed
    for kit in outcome.kits:
        files = read_kit(kit.path, kit.password)
        assert files["registry.bin"] == (folder / "registry.bin").read_bytes()
        key_file = {"aggregator": "aggregator.keys", "lead": "operator.keys"}.get(kit.name, "site.keys")
        assert Identity.from_bytes(files[key_file]).public == registry(folder).member(kit.name)
        assert pki.common_name(files["tls/client.pem"]) == kit.name


def test_each_password_is_in_a_file_of_its_own_until_the_member_is_revoked(folder: Path) -> None:
    outcome = provision(project(), folder, NOW)
    for kit in outcome.kits:
        assert kit.password_file == folder / "passwords" / kit.name
        assert kit.password_file.read_text() == f"{kit.password}\n"
        assert stat.S_IMODE(kit.password_file.stat().st_mode) == 0o600
    again = reissue(folder, "north", NOW).kits[0]
    assert again.password_file.read_text() == f"{again.password}\n"
    revoke(folder, "north", NOW)
    assert sorted(path.name for path in (folder / "passwords").iterdir()) == ["aggregator", "lead", "south"]


def test_no_password_and_no_participants_secret_is_kept_elsewhere(folder: Path) -> None:
    outcome = provision(project(), folder, NOW)
    kept = {name: data for name, data in tree(folder).items() if not name.startswith("passwords/")}
    for kit in outcome.kits:
        assert kit.password not in repr(outcome)
        assert not [name for name, data in kept.items() if kit.password.encode() in data]
        files = read_kit(kit.path, kit.password)
        secrets = [files["tls/client.key"].splitlines()[1]]
        secrets += [files[name] for name in files if name.endswith(".keys")]
        assert not [name for name, data in kept.items() for secret in secrets if secret in data]


def test_everything_is_the_provisioners_alone(folder: Path) -> None:
    provision(project(), folder, NOW)
    renew(folder, [], NOW)
    paths = list(folder.rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [folder, *paths] if path.is_dir()} == {0o700}


def test_the_tls_authority_is_not_the_root(folder: Path) -> None:
    (kit, *_) = provision(project(), folder, NOW).kits
    files = read_kit(kit.path, kit.password)
    assert (folder / "ca.pem").read_bytes() == files["tls/ca.pem"]
    assert read_identity(folder / "root.keys").role == Role.ROOT
    assert {"ca.key", "root.keys"}.isdisjoint(files)


def test_a_second_run_changes_nothing(folder: Path) -> None:
    provision(project(), folder, NOW)
    before = tree(folder)
    outcome = provision(project(), folder, NOW + timedelta(days=3))
    assert (outcome.kits, outcome.renewed, outcome.notes, outcome.changed) == ((), (), (), False)
    assert tree(folder) == before


def test_whoever_joins_later_changes_nobody_elses_files(folder: Path) -> None:
    first = provision(project(), folder, NOW)
    before = tree(folder)
    outcome = provision(project(sites=[*SITES, {"name": "west", "org": "wh"}]), folder, NOW)
    assert names(outcome) == ["west"]
    assert outcome.version > first.version
    after = tree(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"kits/west.zip", "passwords/west", "state.json", "registry.bin", "store.json"}
    assert [member.name for member in registry(folder).members(Role.SITE)] == ["north", "south", "west"]
    # The newcomer's certificate is judged by the authority that everybody has.
    (kit,) = outcome.kits
    assert read_kit(kit.path, kit.password)["tls/ca.pem"] == before["ca.pem"]


def test_a_changed_role_or_policy_makes_a_new_version_and_no_kit(folder: Path) -> None:
    first = provision(project(), folder, NOW)
    assert registry(folder).rights.may("lead", Action.OPERATE, "north")
    outcome = provision(project(operators=[{**LEAD, "roles": ["site_researcher"]}]), folder, NOW)
    assert (outcome.version, names(outcome)) == (first.version + 1, [])
    assert not registry(folder).rights.may("lead", Action.OPERATE, "north")
    outcome = provision(project(organisations={"nh": ["strict"]}), folder, NOW)
    assert outcome.version == first.version + 2
    assert not registry(folder).rights.may("lead", Action.OPERATE, "north")
    assert registry(folder).member("lead").name == "lead"


def test_a_project_may_change_its_cipher_and_no_kit_with_it(folder: Path) -> None:
    first = provision(project(), folder, NOW)
    assert registry(folder).suite is Suite.XCHACHA20
    outcome = provision(project(cipher="aegis256"), folder, NOW)
    assert (outcome.version, outcome.changed, names(outcome)) == (first.version + 1, True, [])
    assert registry(folder).suite is Suite.AEGIS256
    warned, put = outcome.notes
    assert warned.startswith("members encrypt with aegis256 from now on; one with an older fledge")
    assert put.startswith("at the hub `fledge deploy members ")
    assert not provision(project(cipher="aegis256"), folder, NOW).changed
    # Who leaves the key out, revokes or adds somebody keeps what there is.
    assert not provision(project(), folder, NOW).changed
    revoke(folder, "south", NOW)
    assert provision(project(sites=[*SITES, {"name": "west", "org": "wh"}]), folder, NOW).changed
    assert registry(folder).suite is Suite.AEGIS256
    back = provision(project(cipher="xchacha20"), folder, NOW)
    assert registry(folder).suite is Suite.XCHACHA20
    assert not [note for note in back.notes if "older fledge" in note]


def test_a_new_projects_kits_hold_a_registry_that_names_its_cipher(folder: Path) -> None:
    outcome = provision(project(cipher="aegis256"), folder, NOW)
    assert "older fledge" not in str(outcome.notes)
    root = bytes(read_identity(folder / "root.keys").sign.verify_key)
    for kit in outcome.kits:
        record = read_kit(kit.path, kit.password)["registry.bin"]
        assert open_registry(record, root, "clinics").suite is Suite.AEGIS256


def test_a_folder_from_before_there_was_a_choice_stays_what_it_is(folder: Path) -> None:
    provision(project(), folder, NOW)
    state = json.loads((folder / "state.json").read_text())
    del state["project"]["cipher"]
    replace_private(folder / "state.json", json.dumps(state).encode())
    assert not provision(project(), folder, NOW).changed
    assert registry(folder).suite is Suite.XCHACHA20


def test_a_name_never_changes_its_role(folder: Path) -> None:
    provision(project(), folder, NOW)
    before = tree(folder)
    with pytest.raises(ConfigError, match="south has the role site, the project says operator"):
        provision(project(sites=SITES[:1], operators=[{**LEAD, "name": "south"}]), folder, NOW)
    assert tree(folder) == before


def test_whoever_left_the_project_stays_a_member_until_revoked(folder: Path) -> None:
    provision(project(), folder, NOW)
    outcome = provision(project(sites=SITES[:1]), folder, NOW)
    assert "south is no longer in the project but still a member; cut it off by: --revoke south" in outcome.notes
    assert registry(folder).member("south")


def test_revoked_is_revoked_until_somebody_says_otherwise(folder: Path) -> None:
    provision(project(), folder, NOW)
    held = registry(folder).member("north")
    outcome = revoke(folder, "north", NOW)
    assert outcome.changed
    with pytest.raises(Untrusted):
        registry(folder).member("north")
    assert not (folder / "kits" / "north.zip").exists()
    assert "site-north" not in (folder / "store.json").read_text()
    again = provision(project(), folder, NOW)
    assert (again.kits, again.changed) == ((), False)
    assert "north is revoked; take it out of the project, or let it in again: --reissue north" in again.notes
    new = reissue(folder, "north", NOW)
    assert names(new) == ["north"]
    assert registry(folder).member("north").kid != held.kid
    with pytest.raises(Untrusted, match="revoked"):
        registry(folder).signer(held.kid)


def test_a_lost_kit_is_answered_with_new_keys(folder: Path) -> None:
    provision(project(), folder, NOW)
    held = registry(folder).member("south")
    stored = (folder / "store.json").read_text()
    (kit,) = reissue(folder, "south", NOW).kits
    files = read_kit(kit.path, kit.password)
    assert Identity.from_bytes(files["site.keys"]).public == registry(folder).member("south") != held
    assert (folder / "store.json").read_text() != stored


def test_the_aggregator_can_be_replaced_but_not_revoked(folder: Path) -> None:
    provision(project(), folder, NOW)
    with pytest.raises(ConfigError, match="--reissue"):
        revoke(folder, "aggregator", NOW)
    (kit,) = reissue(folder, "aggregator", NOW).kits
    assert "servers/broker.key" in read_kit(kit.path, kit.password)
    assert len(registry(folder).members(Role.AGGREGATOR)) == 1


@pytest.mark.parametrize("act", [revoke, reissue, lambda folder, name, now: renew(folder, [name], now)])
def test_a_mistyped_name_is_answered_with_the_nearest(folder: Path, act: Any) -> None:
    provision(project(), folder, NOW)
    before = tree(folder)
    with pytest.raises(ConfigError, match="'nroth' is unknown; did you mean 'north'"):
        act(folder, "nroth", NOW)
    assert tree(folder) == before


def test_renewed_certificates_are_for_the_same_keys_and_hold_no_secret(folder: Path) -> None:
    kits = {kit.name: kit for kit in provision(project(), folder, NOW).kits}
    later = NOW + timedelta(days=330)
    outcome = renew(folder, [], later)
    assert [each.name for each in outcome.renewed] == ["aggregator", "north", "south", "lead"]
    assert not outcome.changed
    for each in outcome.renewed:
        files = read_kit(kits[each.name].path, kits[each.name].password)
        new = tree(each.folder)
        assert set(new) <= set(files)
        assert not [name for name, data in new.items() if b"PRIVATE" in data or name.endswith((".key", ".keys"))]
        for name, data in new.items():
            assert pki.public_key(data) == pki.public_key(files[name])
            assert pki.expires(data) - pki.expires(files[name]) == timedelta(days=330)
    assert set(tree(folder / "renewed" / "aggregator")) == {"tls/client.pem", "servers/broker.pem", "servers/store.pem"}


def test_one_certificate_is_renewed_without_the_root(folder: Path) -> None:
    provision(project(), folder, NOW)
    (folder / "root.keys").unlink()
    outcome = renew(folder, ["south"], NOW)
    assert [each.name for each in outcome.renewed] == ["south"]
    assert sorted(tree(folder / "renewed")) == ["south/tls/client.pem"]
    with pytest.raises(ConfigError, match=r"root\.keys is not here.* bring the file back"):
        revoke(folder, "south", NOW)


def test_keys_of_another_root_sign_nothing(folder: Path, tmp_path: Path) -> None:
    provision(project(), folder, NOW)
    provision(project(), tmp_path / "other", NOW)
    (folder / "root.keys").write_bytes((tmp_path / "other" / "root.keys").read_bytes())
    with pytest.raises(ConfigError, match="keys of another federation"):
        revoke(folder, "south", NOW)


def test_servers_that_move_get_new_certificates_and_everybody_is_told(folder: Path) -> None:
    provision(project(), folder, NOW)
    outcome = provision(project(broker="amqps://mq.example:443/clinics"), folder, NOW)
    assert [each.name for each in outcome.renewed] == ["aggregator"]
    broker = (folder / "renewed" / "aggregator" / "servers" / "broker.pem").read_bytes()
    assert pki.covers(broker, ["mq.example", "hub.example"])
    (note,) = outcome.notes
    assert note.startswith(
        "broker is now amqps://mq.example:443/clinics; kits from before say amqps://hub.example:5671"
    )


def test_identities_for_the_store_are_listed_under_their_policies_names(folder: Path) -> None:
    outcome = provision(project(), folder, NOW)
    listed = json.loads((folder / "store.json").read_text())["identities"]
    assert [each["name"] for each in listed] == [
        *("aggregator", "sign-uploads", "sign-downloads"),
        *("site-north", "site-south", "operator-lead"),
    ]
    north = next(kit for kit in outcome.kits if kit.name == "north")
    assert listed[3]["secret_key"].encode() in read_kit(north.path, north.password)["credentials.toml"]


def test_with_signed_urls_no_site_is_known_to_the_store(folder: Path) -> None:
    provision(project(access="presigned"), folder, NOW)
    listed = json.loads((folder / "store.json").read_text())["identities"]
    assert [each["name"] for each in listed] == ["aggregator", "sign-uploads", "sign-downloads"]


def test_a_folder_belongs_to_one_federation(folder: Path) -> None:
    provision(project(), folder, NOW)
    with pytest.raises(ConfigError, match="is the folder of clinics, the project is hospitals"):
        provision(project(name="hospitals"), folder, NOW)


def test_a_folder_with_other_things_in_it_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "holiday.jpg").write_text("x")
    with pytest.raises(ConfigError, match=r"holds other things \(holiday.jpg\)"):
        provision(project(), folder, NOW)
    with pytest.raises(ConfigError, match="not a provisioner's folder; make one"):
        revoke(folder, "north", NOW)
    assert list(tree(folder)) == ["holiday.jpg"]


def test_a_lost_state_is_not_taken_for_a_new_beginning(folder: Path) -> None:
    provision(project(), folder, NOW)
    (folder / "state.json").unlink()
    with pytest.raises(ConfigError, match=r"bring state\.json back"):
        provision(project(), folder, NOW)


def test_a_broken_state_is_named_and_not_shown(folder: Path) -> None:
    provision(project(), folder, NOW)
    state = json.loads((folder / "state.json").read_text())
    state["sites"]["north"]["secret_key"] = ["hunter2"]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match=r"state\.json: sites\.north\.secret_key") as refused:
        provision(project(), folder, NOW)
    assert "hunter2" not in str(refused.value)


def test_two_provisioners_do_not_work_in_one_folder_at_a_time(folder: Path) -> None:
    provision(project(), folder, NOW)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="another `fledge provision` is at work"):
            renew(folder, [], NOW)
    finally:
        os.close(held)
    renew(folder, [], NOW)


@pytest.mark.parametrize("steps", range(6))
def test_a_run_that_was_cut_off_is_simply_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Whatever had been written when it stopped: the next run gives everybody a kit that fits the registry."""
    wrote = []

    def cut_off(path: Path, data: bytes) -> None:
        if len(wrote) == steps:
            raise KeyboardInterrupt
        wrote.append(path)
        replace_private(path, data)

    for module in ("deploy.provision.kits", "deploy.provision.custody"):
        monkeypatch.setattr(f"{module}.replace_private", cut_off)
    with pytest.raises(KeyboardInterrupt):
        provision(project(), folder, NOW)
    monkeypatch.undo()
    outcome = provision(project(), folder, NOW)
    assert names(outcome) == ["aggregator", "north", "south", "lead"]
    for kit in outcome.kits:
        files = read_kit(kit.path, kit.password)
        assert files["registry.bin"] == (folder / "registry.bin").read_bytes()
        assert files["tls/ca.pem"] == (folder / "ca.pem").read_bytes()


def test_what_others_read_is_written_again_if_it_was_cut_off_or_lost(folder: Path) -> None:
    provision(project(), folder, NOW)
    before = tree(folder)
    (folder / "registry.bin").unlink()
    (folder / "store.json").write_bytes(b"")
    provision(project(), folder, NOW)
    assert tree(folder) == before


def test_secrets_stand_in_no_repr(folder: Path) -> None:
    outcome = provision(project(), folder, NOW)
    with provisioning.open_custody(folder, None, NOW) as custody:
        shown = repr(custody) + repr(custody.authority()) + repr(outcome)
        secrets = [each.secret_key for each in (*custody.state.hub.values(), *custody.state.sites.values())]
        assert len(secrets) == 5
        assert not [secret for secret in secrets if secret in shown]
    assert "PRIVATE" not in shown
