from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
import typer.core
import typer.main

from broker.blobs.directory import FileBlobs
from fledge.cli.app import app, exit_code
from fledge.federation import new_federation
from fledge.process import log
from fledge.runs.init_run import init_run
from protocol.errors import ConfigError, DiskFull, Fenced, FledgeError, Missing, Untrusted
from tests.support.command_line import fledge
from tests.support.kits import Kits

TRAINER = "fledge.demo.task:trainer"


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line an error becomes."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fledge: ")
    return lines[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A federation and a run that need no server."""
    store = (tmp_path / "store").as_uri()
    new_federation(tmp_path / "f", name="clinics", sites=["alpha"], broker="memory:", store=store, trainer=TRAINER)
    init_run(TRAINER, tmp_path / "run", name="digits", options={"seed": 1, "hospitals": 2})
    return tmp_path


def test_help_needs_no_library_of_a_command() -> None:
    code = """
import json, sys
from fledge.cli import main
sys.argv = ["fledge", "--help"]
try:
    main()
except SystemExit:
    sys.stderr.write(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded
    heavy = {"torch", "monai", "sklearn", "safetensors", "scipy", "numpy", "sqlalchemy", "pika", "minio", "pydantic"}
    assert not loaded & {*heavy, "structlog", "aggregator", "worker", "broker"}
    for command in ("new-federation", "init-run", "aggregator", "worker", "demo", "replay", "export", "version"):
        assert command in done.stdout


def test_the_version_is_the_distributions() -> None:
    shown = fledge("--version")
    assert shown.returncode == 0
    assert shown.stdout == fledge("version").stdout
    assert shown.stdout.startswith("fledge 0.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (Fenced("x"), 3),
        (DiskFull("x"), 1),
        (Missing("x"), 1),
        (Untrusted("x"), 1),
        (FledgeError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: FledgeError, code: int) -> None:
    assert exit_code(error) == code


def test_a_missing_configuration_is_one_line_and_code_2(tmp_path: Path) -> None:
    for command in (["aggregator", "r"], ["worker"], ["replay", "r"], ["export", "r", "-o", "m"]):
        done = fledge(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert ".toml: No such file or directory; is the path right?" in complaint(done)


def test_a_wrong_key_is_named_with_the_ones_that_exist(place: Path) -> None:
    with (place / "run" / "run.toml").open("a") as file:
        file.write("typo = 1\n")
    done = fledge("aggregator", "--config", place / "f" / "aggregator.toml", "--run", place / "run")
    assert done.returncode == 2
    assert "stop.typo" in complaint(done)


def test_a_run_that_was_never_served_cannot_be_replayed_or_exported(place: Path) -> None:
    config = place / "f" / "aggregator.toml"
    for command in (["replay"], ["replay", "--audit"], ["export", place / "model"]):
        done = fledge(*command, "--config", config, "--run", "digits")
        assert done.returncode == 1
        assert "the aggregator has never been started here" in complaint(done)
    assert not (place / "model").exists()


def test_passwords_in_urls_are_never_shown(place: Path) -> None:
    done = fledge(
        "aggregator",
        *("--config", place / "f" / "aggregator.toml"),
        *("--run", place / "run"),
        FLEDGE_BROKER="amqp+typo://user:hunter2@broker.example/x",
    )
    assert done.returncode == 2
    assert "unknown scheme" in complaint(done)
    assert "hunter2" not in done.stderr


def test_real_servers_of_the_demo_come_in_pairs() -> None:
    done = fledge("demo", "--broker", "amqp://broker.example/x")
    assert done.returncode == 2
    assert "--store" in complaint(done)


LOGINS = {
    "--broker": ("FLEDGE_BROKER", "amqps://user:hunter2@broker.example/x"),
    "--store": ("FLEDGE_STORE", "s3s://KEY:hunter2@store.example/bucket"),
    "--management": ("FLEDGE_MANAGEMENT", "https://admin:hunter2@broker.example:15671"),
}


def takers(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command that has an option for a URL of a server, and the option."""
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from takers(command, (*path, name))
            continue
        for parameter in command.params:
            if any(word in f"{parameter.name} {getattr(parameter, 'help', '')}" for word in ("://", *LOGINS)):
                yield (*path, name), parameter.opts[-1]
            assert not re.search("password$|secret|token", parameter.opts[-1]), f"{path} {name} takes a secret"


def configured(
    group: typer.core.TyperGroup, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    """Every command that reads a configuration file of a site or of the hub."""
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from configured(command, (*path, name))
        elif path != ("bundle",) and any("--config" in parameter.opts for parameter in command.params):
            assert isinstance(command, typer.core.TyperCommand)
            yield (*path, name), command


COMMANDS = typer.main.get_command(app)
assert isinstance(COMMANDS, typer.core.TyperGroup)


@pytest.mark.parametrize(("command", "option"), [*takers(COMMANDS)])
def test_no_command_takes_a_login_as_an_argument(
    command: tuple[str, ...], option: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLEDGE_BROKER", "FLEDGE_STORE"):
        monkeypatch.setenv(name, "")
    variable, url = LOGINS[option]
    others = {"--broker": "amqp://localhost/", "--store": "file:///srv/x"}
    needed = {"new-federation": [str(place / "new"), "--site", "north"], "broker": ["--kit", str(place / "f")]}
    needed |= {"members": [str(place / "f"), "--kit", str(place / "f")]}
    arguments = [*command, *needed.get(command[-1], []), option, url]
    if option != "--management":
        arguments += [word for each, value in others.items() if each != option for word in (each, value)]
    with pytest.raises(ConfigError, match=rf"arguments of a command.* into {variable}") as refused:
        COMMANDS.main(arguments, standalone_mode=False)
    assert "hunter2" not in str(refused.value)
    assert not (place / "new").exists()


EVERY_CONFIGURED = dict(configured(COMMANDS))


@pytest.mark.parametrize("words", EVERY_CONFIGURED, ids=" ".join)
def test_whoever_takes_a_configuration_takes_a_kit_likewise(words: tuple[str, ...], place: Path) -> None:
    options = {option for parameter in EVERY_CONFIGURED[words].params for option in parameter.opts}
    assert "--kit" in options
    needed = {"infer": ["x", "--in", "x", "--out", "x"], "approve": ["x"], "refuse": ["x"], "case": ["x"]}
    needed |= {"receipt": ["x"], "rehearse": [], "export": ["x", "-o", "x"] if words == ("export",) else ["-o", "x"]}
    needed |= {"replay": ["x"]}
    arguments = [*words, *needed.get(words[-1], [])]
    with pytest.raises(ConfigError, match="give --kit or --config, not both"):
        COMMANDS.main([*arguments, "--kit", str(place), "--config", "other.toml"], standalone_mode=False)
    if words in (("doctor",), ("healthcheck",)):  # these take every kit
        return
    helps = " ".join(str(getattr(parameter, "help", "")) for parameter in EVERY_CONFIGURED[words].params)
    theirs = place / "f" if "the site's" in helps.lower() else place / "f" / "sites" / "alpha"
    with pytest.raises(ConfigError, match=r"is the kit of .*; this needs one of "):
        COMMANDS.main([*arguments, "--kit", str(theirs)], standalone_mode=False)


def test_the_servers_of_a_new_federation_may_come_from_the_environment(place: Path) -> None:
    given = {"FLEDGE_BROKER": "amqps://user:hunt%2Fer2@broker.example/x", "FLEDGE_STORE": "file:///srv/x"}
    made = fledge("new-federation", place / "new", "--site", "north", **given)
    assert made.returncode == 0, made.stderr
    assert "hunt" not in made.stdout + made.stderr + (place / "new" / "aggregator.toml").read_text()
    assert 'password = "hunt/er2"' in (place / "new" / "sites" / "north" / "credentials.toml").read_text()
    nowhere = fledge("new-federation", place / "again", "--site", "north", "--broker", "amqp://localhost/")
    assert "give --store URL, or put the URL with its login into FLEDGE_STORE" in complaint(nowhere)


def test_a_federation_and_a_run_are_made_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["--site", "alpha", "--site", "beta", "--broker", "memory:", "--store", "file:///srv/fledge"]
    unknown = fledge("new-federation", "clinics", *arguments, "--cipher", "rot13", cwd=tmp_path)
    assert "cipher 'rot13' is unknown; known: xchacha20, aegis256" in complaint(unknown)
    arguments += ["--cipher", "xchacha20"]
    made = fledge("new-federation", "clinics", *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "members encrypt with xchacha20" in made.stdout
    assert (tmp_path / "clinics" / "sites" / "beta" / "worker.toml").is_file()
    again = fledge("new-federation", "clinics", *arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "never overwritten" in complaint(again)
    options = ["--option", "seed=4", "--option", "hospitals=2"]
    run = fledge("init-run", TRAINER, "-o", "run", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "4 tensors" in run.stdout
    wrong = fledge("init-run", TRAINER, "-o", "other", "--option", "seed", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "NAME=VALUE" in complaint(wrong)


@contextmanager
def serving(place: Path) -> Iterator[subprocess.Popen[str]]:
    """An aggregator as a process, once it has started; killed at the end if it is still there."""
    command = [sys.executable, "-m", "fledge.cli", "--json-logs", "aggregator"]
    command += ["--config", str(place / "f" / "aggregator.toml"), "--run", str(place / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = process.stderr
            assert lines is not None
            seen = []
            for line in lines:
                seen.append(line)
                if '"aggregator.started"' in line:
                    break
            else:
                pytest.fail("".join(seen))
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_aggregator_ends_in_order_when_it_is_told_to(place: Path, number: int) -> None:
    with serving(place) as process:
        process.send_signal(number)
        assert process.wait(60) == 0
    kept = fledge("export", place / "run", "-o", place / "model", "--config", place / "f" / "aggregator.toml")
    assert kept.returncode == 0, kept.stderr
    assert (place / "model").read_bytes() == (place / "run" / "initial.safetensors").read_bytes()


def test_garbage_is_collected_only_where_a_run_says_what_is_needed(place: Path) -> None:
    config = place / "f" / "aggregator.toml"
    refused = fledge("collect", "--config", config)
    assert refused.returncode == 1
    assert "holds no run" in complaint(refused)
    with serving(place) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    data = b"left by a crash"
    store = FileBlobs(place / "store")
    for name, age_days in (("models", 15), ("models", 1), ("elsewhere", 15)):
        key = f"{name}/{hashlib.sha256(data + bytes([age_days])).hexdigest()}"
        store.put(key, data + bytes([age_days]))
        then = time.time() - age_days * 86400
        os.utime(place / "store" / key, (then, then))
    assert fledge("collect", "--config", config).stdout == "1 objects, 16 bytes collected\n"
    kept = fledge("export", place / "model", "--config", config, "--run", "digits")  # as it was once written
    assert kept.returncode == 0, kept.stderr
    copied = fledge("audit", "export", "-o", place / "ledger", "--config", config)
    assert copied.returncode == 0, copied.stderr
    checked = fledge("audit", "verify", place / "ledger", "--kit", place / "f" / "sites" / "alpha")
    assert "nothing was altered" in checked.stdout, checked.stderr


@pytest.mark.parametrize(
    ("arguments", "library"),
    [
        (["init-run", "mytask:model", "-o", "run"], "torch"),
        (["init-run", TRAINER, "-o", "run", "--option", "seed=1", "--option", "hospitals=2"], "sklearn"),
        (["demo", "--quick"], "sklearn"),
    ],
)
def test_a_training_library_that_is_missing_is_named_with_the_extra_that_has_it(
    tmp_path: Path, arguments: list[str], library: str
) -> None:
    (tmp_path / "mytask.py").write_text("import torch\n")
    program = f"""
import sys
class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "monai", "sklearn", "safetensors"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Uninstalled())
sys.argv = ["fledge", *{arguments!r}]
from fledge.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs {library}" in complaint(done)
    assert "[train]" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["mytask.py"]


def test_logs_never_hold_secrets() -> None:
    event = {
        "event": "connecting",
        "url": "amqps://user:hunter2@broker.example/x",
        "error": "tried s3s://KEY:hunter2@store.example/bucket, failed",
        "store_password": "hunter2",
        "count": 3,
    }
    said = io.StringIO()
    log.configure(json_lines=True, file=said)
    structlog.get_logger().info(**event)
    structlog.reset_defaults()
    shown = json.loads(said.getvalue())
    assert "hunter2" not in said.getvalue()
    assert shown["url"] == "amqps://***@broker.example/x"
    assert shown["count"] == 3


def test_a_log_file_takes_what_late_threads_still_say(tmp_path: Path) -> None:
    with (tmp_path / "demo.log").open("w") as file:
        steady = log.Steady(file)
        steady.write("first\n")
    steady.write("late\n")
    steady.flush()
    assert (tmp_path / "demo.log").read_text() == "first\n"


def test_an_operators_broker_may_come_from_the_environment_too(tmp_path: Path) -> None:
    kit = Kits(tmp_path).make("ada", tmp_path / "ada", broker="amqps://nowhere.example/x", store="")
    done = fledge("ctl", "--kit", kit, "status", FLEDGE_BROKER="amqp+typo://user:hunter2@broker.example/x")
    assert done.returncode == 2
    assert "unknown scheme" in complaint(done)
    assert "hunter2" not in done.stderr
