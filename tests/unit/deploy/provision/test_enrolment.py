from __future__ import annotations

import base64
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.keyfiles import read_identity
from deploy.provision import kit_files, pki
from deploy.provision.enrolment import Enrolled, enrol, finish, make_request, open_request, typed_code
from deploy.provision.kits import open_kit, random_code, read_kit
from deploy.provision.project import Project, check_project
from deploy.provision.provisioning import Issued, accept, provision, revoke
from protocol.errors import ConfigError
from protocol.keys import Identity, Role
from protocol.registry import open_registry

NOW = datetime.now(UTC)


def project(name: str = "clinics", *, south_enrols: bool = True) -> Project:
    return check_project(
        {
            "name": name,
            "aggregator": {"org": "centre", "address": "hub.example"},
            "sites": [
                {"name": "north", "org": "nh"},
                {"name": "south", "org": "sh", "enrol": south_enrols},
                {"name": "west", "org": "wh", "enrol": True},
            ],
            "operators": [{"name": "lead", "email": "l@hub.example", "org": "nh", "roles": ["super"], "enrol": True}],
        }
    )


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    provision(project(), tmp_path / "provisioner", NOW)
    return tmp_path / "provisioner"


@pytest.fixture
def asked(tmp_path: Path) -> Enrolled:
    return enrol(tmp_path / "south", "south", Role.SITE, "clinics")


def answer(centre: Path, asked: Enrolled) -> Issued:
    (kit,) = accept(centre, asked.request.read_bytes(), asked.code, NOW).kits
    return kit


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_keys_are_made_at_the_site_and_never_leave_it(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    south = tmp_path / "south"
    files = tree(south)
    assert sorted(files) == ["site.keys", "south.request", "tls/client.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in south.rglob("*") if path.is_file()} == {0o600}
    kit = answer(centre, asked)
    inside = read_kit(kit.path, kit.password)
    assert not {"site.keys", "tls/client.key"} & set(inside)
    identity = read_identity(south / "site.keys")
    secrets = [bytes(identity.sign), bytes(identity.box), files["tls/client.key"]]
    blob = base64.b64decode("".join(files["south.request"].decode().splitlines()[1:-1]))
    held = [blob, *inside.values(), *tree(centre).values()]
    assert not [secret for secret in secrets for data in held if secret in data]


def test_the_answer_completes_the_folder(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    kit = answer(centre, asked)
    keys = (tmp_path / "south" / "site.keys").read_bytes()
    facts = finish(kit.path, kit.password, tmp_path / "south", NOW)
    assert (facts.name, facts.role, facts.federation) == ("south", Role.SITE, "clinics")
    found = tree(tmp_path / "south")
    assert found["site.keys"] == keys
    assert {"worker.toml", "credentials.toml", "registry.bin", "tls/client.pem", "start.sh"} <= set(found)
    assert pki.public_key(found["tls/client.pem"]) == pki.public_key(found["tls/client.key"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "south").rglob("*") if path.is_file()} == {0o600}
    assert finish(kit.path, kit.password, tmp_path / "south", NOW) == facts
    assert tree(tmp_path / "south") == found


def test_an_operator_enrols_like_a_site(centre: Path, tmp_path: Path) -> None:
    asked = enrol(tmp_path / "lead", "lead", Role.OPERATOR, "clinics")
    kit = answer(centre, asked)
    assert finish(kit.path, kit.password, tmp_path / "lead", NOW).role == Role.OPERATOR
    record = (centre / "registry.bin").read_bytes()
    root = bytes(read_identity(centre / "root.keys").sign.verify_key)
    entry = next(e for e in open_registry(record, root, "clinics").entries if e.name == "lead")
    assert (entry.roles, entry.organisation) == (("super",), "nh")
    assert entry.participant == read_identity(tmp_path / "lead" / "operator.keys").public


def test_the_same_request_gets_the_same_answer_again(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    first = accept(centre, asked.request.read_bytes(), asked.code, NOW)
    again = accept(centre, asked.request.read_bytes(), asked.code, NOW)
    assert first.changed
    assert not again.changed
    assert again.version == first.version
    assert again.kits[0].password != first.kits[0].password
    finish(again.kits[0].path, again.kits[0].password, tmp_path / "south", NOW)


def test_new_keys_replace_the_old_ones(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    answer(centre, asked)
    second = enrol(tmp_path / "again", "south", Role.SITE, "clinics")
    outcome = accept(centre, second.request.read_bytes(), second.code, NOW)
    assert outcome.changed
    finish(outcome.kits[0].path, outcome.kits[0].password, tmp_path / "again", NOW)
    with pytest.raises(ConfigError, match="these keys of south hold no longer; have it run `fledge enrol`"):
        answer(centre, asked)


def test_keys_that_were_revoked_are_not_accepted_again(centre: Path, asked: Enrolled) -> None:
    answer(centre, asked)
    revoke(centre, "south", NOW)
    with pytest.raises(ConfigError, match="hold no longer"):
        answer(centre, asked)


def test_a_code_is_taken_as_people_type_it(asked: Enrolled) -> None:
    raw = asked.request.read_bytes()
    for typed in (asked.code.upper(), asked.code.replace("-", ""), asked.code.replace("-", " ") + "\n"):
        assert open_request(raw, typed, "clinics").name == "south"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "has 20 characters, what was typed has 0"),
        ("abcde-fghjk-mnpqr-stuv", "what was typed has 19"),
        ("abcde-fghjk-mnpqr-stuvo", "0, 1, i, l and o are never used"),
        ("abcde-fghjk-mnpqr-stuv€", "a character that no code has"),
    ],
)
def test_a_mistyped_code_says_how_without_showing_it(typed: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        typed_code(typed)
    assert typed not in str(refused.value) or not typed


def test_a_wrong_code_and_a_changed_request_are_refused(asked: Enrolled) -> None:
    raw = asked.request.read_bytes()
    with pytest.raises(ConfigError, match="does not fit this request; ask for the code again"):
        open_request(raw, random_code(4), "clinics")
    lines = raw.decode().splitlines()
    for number in range(1, len(lines) - 1):
        letter = "A" if lines[number][5] != "A" else "B"
        changed = [*lines[:number], lines[number][:5] + letter + lines[number][6:], *lines[number + 1 :]]
        with pytest.raises(ConfigError, match="does not fit this request"):
            open_request("\n".join(changed).encode(), asked.code, "clinics")


def test_somebody_who_swaps_the_request_needs_the_code(asked: Enrolled) -> None:
    mine = make_request(Identity.generate("south", Role.SITE), "clinics", pki.new_key(), random_code(4))
    with pytest.raises(ConfigError, match="was changed on its way"):
        open_request(mine, asked.code, "clinics")


def test_mail_programs_may_wrap_a_request_but_not_cut_it(asked: Enrolled) -> None:
    raw = asked.request.read_bytes()
    wrapped = b"Dear all,\r\n\r\n" + raw.replace(b"\n", b"\r\n") + b"\r\n-- \r\nSouth"
    assert open_request(wrapped, asked.code, "clinics").name == "south"
    for wrong in (b"", raw[:40], b"\xff" * 100, b"x" * 20_000, raw[:60] + raw[-30:]):
        with pytest.raises(ConfigError, match=r"not a request|does not fit"):
            open_request(wrong, asked.code, "clinics")


def test_a_request_for_another_federation_is_refused(centre: Path, tmp_path: Path) -> None:
    asked = enrol(tmp_path / "south", "south", Role.SITE, "hospitals")
    with pytest.raises(ConfigError, match="south asks to join hospitals, but this is clinics"):
        answer(centre, asked)


@pytest.mark.parametrize(
    ("name", "role", "says"),
    [
        ("east", Role.SITE, "participant 'east' is unknown; did you mean 'west'"),
        ("north", Role.SITE, "makes the keys of north itself; .*`enrol: true`"),
        ("south", Role.OPERATOR, "south asks for the role operator, the project says site"),
    ],
)
def test_only_who_is_expected_is_let_in(centre: Path, tmp_path: Path, name: str, role: Role, says: str) -> None:
    before = tree(centre)
    with pytest.raises(ConfigError, match=says):
        answer(centre, enrol(tmp_path / name, name, role, "clinics"))
    assert tree(centre) == before


def test_a_kit_for_other_keys_is_not_unpacked_beside_these(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    kit = answer(centre, asked)
    enrol(tmp_path / "other", "south", Role.SITE, "clinics")
    before = tree(tmp_path / "other")
    with pytest.raises(ConfigError, match="is for other keys than those in"):
        finish(kit.path, kit.password, tmp_path / "other", NOW)
    assert tree(tmp_path / "other") == before
    with pytest.raises(ConfigError, match="is this the right kit"):
        finish(kit.path, kit.password, tmp_path / "nowhere", NOW)


def test_what_somebody_has_changed_is_not_overwritten(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    kit = answer(centre, asked)
    finish(kit.path, kit.password, tmp_path / "south", NOW)
    config = tmp_path / "south" / kit_files.CONFIGURATION[Role.SITE]
    config.write_text(config.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match=r"worker\.toml is there already and differs"):
        finish(kit.path, kit.password, tmp_path / "south", NOW)


def test_kits_with_and_without_keys_are_not_confused(centre: Path, asked: Enrolled, tmp_path: Path) -> None:
    kit = answer(centre, asked)
    with pytest.raises(ConfigError, match=r"holds no keys, .*fledge enrol --finish"):
        open_kit(kit.path, kit.password, tmp_path / "new", NOW)
    whole = next(k for k in provision(project(south_enrols=False), tmp_path / "p2", NOW).kits if k.name == "south")
    with pytest.raises(ConfigError, match="brings keys of its own"):
        finish(whole.path, whole.password, tmp_path / "south", NOW)


def test_keys_are_never_overwritten_and_the_code_is_not_shown(asked: Enrolled, tmp_path: Path) -> None:
    assert asked.code not in repr(asked)
    with pytest.raises(ConfigError, match="ever overwritten"):
        enrol(tmp_path / "south", "south", Role.SITE, "clinics")
    for name, federation in (("South", "clinics"), ("aggregator", "clinics"), ("south", "../up")):
        with pytest.raises(ConfigError, match="cannot name"):
            enrol(tmp_path / "new", name, Role.SITE, federation)
