from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deploy.keyfiles import read_identity
from fledge.cli.provision import _secret, register
from protocol.cipher import Suite
from protocol.errors import ConfigError
from protocol.registry import Registry, open_registry
from tests.support import command_line

PASSWORD = re.compile(r"\b[2-9a-z]{5}(?:-[2-9a-z]{5}){4}\b")
CODE = re.compile(r"shown only now: ([2-9a-z]{5}(?:-[2-9a-z]{5}){3})$", re.MULTILINE)
SITE = "  - {name: %s, org: %s%s}\n"
PROJECT = "name: clinics\naggregator: {org: centre, address: hub.example}\nsites:\n" + SITE % ("north", "nh", "")


def fledge(*arguments: str | Path, cwd: Path, rc: int = 0, **environment: str) -> str:
    """Run the command line as a user does: what it prints, or its one line of complaint."""
    done = command_line.fledge(*arguments, cwd=cwd, **environment)
    assert done.returncode == rc, done.stderr
    if rc == 0:
        assert done.stderr == ""
        return done.stdout
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def registry(place: Path) -> Registry:
    root = bytes(read_identity(place / "p" / "root.keys").sign.verify_key)
    return open_registry((place / "p" / "registry.bin").read_bytes(), root, "clinics")


def test_from_a_project_to_an_unpacked_kit(tmp_path: Path) -> None:
    written(tmp_path / "project.yml", PROJECT)
    # However narrow the terminal is, passwords stay whole.
    shown = fledge("provision", "project.yml", "-o", "p", cwd=tmp_path, COLUMNS="30")
    lines = {line.split()[0]: line for line in shown.splitlines() if PASSWORD.search(line)}
    assert list(lines) == ["aggregator", "north"]
    (password,) = PASSWORD.findall(lines["north"])
    file = written(tmp_path / "password", password + "\n")
    told = fledge("kit", "p/kits/north.zip", "-o", "north", "--password-file", file, cwd=tmp_path)
    assert told.startswith("north: site north of clinics, certificate until 20")
    written(file, PASSWORD.findall(lines["aggregator"])[0])
    told = fledge("kit", "p/kits/aggregator.zip", "-o", "hub", "--password-file", file, cwd=tmp_path)
    assert told.startswith("hub: aggregator of clinics, certificate until 20")
    assert stat.S_IMODE((tmp_path / "north" / "site.keys").stat().st_mode) == 0o600
    again = fledge("provision", "project.yml", "-o", "p", cwd=tmp_path)
    assert again == "p/registry.bin: registry version 3 has not changed\n"
    files = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert [path for path in files if password.encode() in path.read_bytes()] == [
        tmp_path / "p" / "passwords" / "north"
    ]
    told = fledge("kit", "p/kits/north.zip", "-o", "again", "--password-file", "p/passwords/north", cwd=tmp_path)
    assert told.startswith("again: site north of clinics")


def test_the_brokers_settings_listen_where_the_project_says(tmp_path: Path) -> None:
    written(tmp_path / "project.yml", PROJECT.replace("{org", "{broker_port: 5699, org", 1))
    fledge("provision", "project.yml", "-o", "p", cwd=tmp_path)
    fledge("kit", "p/kits/aggregator.zip", "-o", "hub", "--password-file", "p/passwords/aggregator", cwd=tmp_path)
    assert "5699" in (tmp_path / "hub" / "aggregator.toml").read_text()
    for more, port in (((), 5699), (("--port", "5671"), 5671)):
        shown = fledge("deploy", "files", "--kit", "hub", "-o", "broker", *more, cwd=tmp_path)
        assert f"RabbitMQ listens on port {port}" in shown
        settings = (tmp_path / "broker" / "rabbitmq" / "rabbitmq.conf").read_text()
        assert f"listeners.ssl.default = {port}\n" in settings


def test_from_a_site_that_makes_its_own_keys_to_its_renewal_and_its_end(tmp_path: Path) -> None:
    written(tmp_path / "project.yml", PROJECT + SITE % ("south", "sh", ", enrol: true"))
    shown = fledge("provision", "project.yml", "-o", "p", cwd=tmp_path)
    assert "deploy members p --kit" not in shown  # the hub's kit, made now, holds the list already
    assert "note: south makes its own keys: there, fledge enrol south --federation clinics -o south; " in shown
    asked = fledge("enrol", "south", "--federation", "clinics", "-o", "south", cwd=tmp_path)
    (code,) = CODE.findall(asked)
    file = written(tmp_path / "code", code)
    made = fledge("provision", "--accept", "south/south.request", "--code-file", file, "-o", "p", cwd=tmp_path)
    assert "registry version 4 is new\n" in made
    assert "note: at the hub `fledge deploy members p --kit HUB --operator OPERATOR` puts it in force\n" in made
    written(file, PASSWORD.findall(made)[0])
    told = fledge("enrol", "--finish", "p/kits/south.zip", "south", "--password-file", file, cwd=tmp_path)
    assert told.startswith("south: site south of clinics")
    assert registry(tmp_path).member("south") == read_identity(tmp_path / "south" / "site.keys").public
    renewed = fledge("provision", "--renew", "south", "-o", "p", cwd=tmp_path)
    assert "south: put what is in p/renewed/south over the old files; good until 20" in renewed
    assert "version 5 is new" in fledge("provision", "--revoke", "south", "-o", "p", cwd=tmp_path)


def test_the_example_project_can_be_provisioned(tmp_path: Path) -> None:
    written(tmp_path / "project.yml", fledge("provision", "--example", cwd=tmp_path))
    assert len(PASSWORD.findall(fledge("provision", "project.yml", "-o", "p", cwd=tmp_path))) == 4
    assert registry(tmp_path).suite is Suite.AEGIS256


def test_a_federation_moves_to_another_cipher_and_back(tmp_path: Path) -> None:
    for number, (line, suite, told) in enumerate(
        [
            ("", Suite.XCHACHA20, "registry version 3 is new"),
            ("cipher: aegis256\n", Suite.AEGIS256, "registry version 4 is new"),
            ("", Suite.AEGIS256, "registry version 4 has not changed"),
            ("cipher: xchacha20\n", Suite.XCHACHA20, "registry version 5 is new"),
        ]
    ):
        written(tmp_path / "project.yml", PROJECT + line)
        said = fledge("provision", "project.yml", "-o", "p", cwd=tmp_path)
        assert told in said
        assert registry(tmp_path).suite is suite
        assert ("one with an older fledge takes no list that says so" in said) is (number == 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["provision", "bad.yml", "-o", "p"], "bad.yml: sitess is unknown; did you mean 'sites'?"),
        (["provision", "none.yml", "-o", "p"], "none.yml: No such file or directory; it should be the project file"),
        (["provision", "project.yml"], "say where the provisioner's own folder is, or shall be: -o DIR"),
        (["provision", "-o", "p"], "name one project file; `fledge provision --example` prints one"),
        (["provision", "--renew", "--revoke", "north", "-o", "p"], "exclude each other"),
        (["provision", "--revoke", "north", "-o", "p"], "p is not a provisioner's folder"),
        (["provision", "--revoke", "north", "south", "-o", "p"], "'south' has no place here"),
        (["provision", "--accept", "bad.yml", "--code-file", "bad.yml", "-o", "p"], "p is not a provisioner's folder"),
        (["provision", "--accept", "none", "-o", "p"], "none: No such file or directory; it should be the request"),
        (["enrol", "south"], "say which federation and where to put the keys: --federation NAME -o FOLDER"),
        (["enrol", "South", "--federation", "clinics", "-o", "s"], "'South' cannot name a site"),
        (["enrol", "--finish", "bad.yml", "f", "-o", "x"], "--finish needs the kit and the folder"),
        (
            ["kit", "bad.yml", "-o", "new"],
            "there is no terminal to ask on; put it into a file and name that with --password-file",
        ),
        (["kit", "bad.yml", "-o", "new", "--password-file", "bad.yml"], "bad.yml is damaged or not a kit"),
    ],
)
def test_what_cannot_work_gets_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    written(tmp_path / "project.yml", PROJECT)
    written(tmp_path / "bad.yml", PROJECT.replace("sites", "sitess"))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.output == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yml", "project.yml"]


def test_bad_input_ends_with_exit_code_2(tmp_path: Path) -> None:
    assert fledge("provision", "none.yml", "-o", "p", cwd=tmp_path, rc=2).startswith("fledge: none.yml: No such file")


def test_a_password_is_asked_for_on_the_terminal_and_not_shown() -> None:
    ours, theirs = pty.openpty()
    code = "from fledge.cli.provision import _secret; print('got', len(_secret(None, 'Password of the kit')))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        while b"Password of the kit: " not in seen:
            seen += os.read(ours, 1024)
        os.write(ours, b"hunter2-abc\n")
        while not re.search(rb"got \d+\r", seen):
            seen += os.read(ours, 1024)
        process.wait(20)
    os.close(ours)
    assert b"got 11" in seen
    assert b"hunter2" not in seen


def test_a_password_file_is_not_read_without_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1024 bytes; it should be a file with the password"):
        _secret(written(tmp_path / "x", "a" * 2000), "Password")
