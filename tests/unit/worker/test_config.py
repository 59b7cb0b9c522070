from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from worker.config import call_factory, load_trainer, read_config, site_policy, trainer_digest
from worker.policy import OPEN

ROOT = "ab" * 32
GOOD = f"""\
federation = "heart"
broker = "amqps://anna:hunter2@broker.example/heart"
store = "s3s://KEY:hunter2@store.example/heart"
root = "{ROOT}"
trainer = "mytask:trainer"
exclude = ["head.*"]

[[filters]]
name = "clip"
norm = 5.0

[[filters]]
name = "gaussian"
noise_multiplier = 0.1

[options]
data = "patients"
"""


def written(directory: Path, text: str = GOOD) -> Path:
    path = directory / "worker.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    """A directory with a trainer of the user's own; forgotten afterwards."""
    (tmp_path / "hospital_task.py").write_text(
        "def trainer(data, steps=1):\n    return (data, steps)\n\n\ndef broken():\n    raise TypeError('no GPU')\n"
        "\n\ndef without_data():\n    open('scan.npz')\n",
        encoding="utf-8",
    )
    yield tmp_path
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path.resolve())]
    sys.modules.pop("hospital_task", None)


def test_a_configuration_says_who_where_and_what(tmp_path: Path) -> None:
    config = read_config(written(tmp_path), {})
    assert (config.federation, config.trainer, config.options) == ("heart", "mytask:trainer", {"data": "patients"})
    assert [(each.name, each.parameters) for each in config.filters] == [
        ("clip", {"norm": 5.0}),
        ("gaussian", {"noise_multiplier": 0.1}),
    ]
    assert (config.keys, config.state, config.exclude) == (Path("site.keys"), Path("state"), ("head.*",))


def test_a_site_may_have_no_trainer_of_its_own_and_options_for_each_run_that_brings_one(tmp_path: Path) -> None:
    text = GOOD.replace('trainer = "mytask:trainer"\n', "") + '[runs.lungs-2.options]\nfolder = "/data/lungs"\n'
    config = read_config(written(tmp_path, text), {})
    assert config.trainer is None
    assert config.options_of("lungs-2") == {"folder": "/data/lungs"}
    assert config.options_of("another") == {"data": "patients"}
    with pytest.raises(ConfigError, match=r"runs\.lungs-2\.option"):
        read_config(written(tmp_path, GOOD + "[runs.lungs-2]\noption = 1\n"), {})


def test_the_line_and_the_policy_are_part_of_the_configuration(tmp_path: Path) -> None:
    text = GOOD.replace(
        "[options]", '[tls]\nca = "tls/ca.pem"\ncert = "tls/client.pem"\nkey = "tls/client.key"\n[options]'
    )
    keys = 'proxy = "http://anna:hunter2@proxy.example:3128"\naccess = "presigned"\ninsecure = true\n'
    config = read_config(written(tmp_path, keys + text), {})
    assert config.tls is not None
    assert (config.tls.ca, config.tls.key) == (Path("tls/ca.pem"), Path("tls/client.key"))
    assert (config.access, config.insecure, config.policy) == ("presigned", True, Path("policy.toml"))
    assert "hunter2" not in repr(config)
    plain = read_config(written(tmp_path), {})
    assert (plain.tls, plain.proxy, plain.access, plain.insecure) == (None, None, "credentials", False)


@pytest.mark.parametrize("line", ['access = "anonymous"', 'proxy = "proxy.example:3128"', '[tls]\nca = "ca.pem"'])
def test_a_line_that_cannot_be_meant_is_refused(tmp_path: Path, line: str) -> None:
    text = line + "\n" + GOOD if "[" not in line else GOOD + "\n" + line
    with pytest.raises(ConfigError, match=r"access|proxy|tls\.cert"):
        read_config(written(tmp_path, text), {})


def test_a_policy_may_be_missing_unless_the_configuration_names_one(tmp_path: Path) -> None:
    assert site_policy(read_config(written(tmp_path), {}), tmp_path) == OPEN
    named = read_config(written(tmp_path, 'policy = "policy.toml"\n' + GOOD), {})
    with pytest.raises(ConfigError, match="no such policy"):
        site_policy(named, tmp_path)
    (tmp_path / "policy.toml").write_text("ask_first = true")
    assert site_policy(named, tmp_path).ask_first


def test_training_code_is_known_by_the_digest_of_its_file(module: Path) -> None:
    source = module / "hospital_task.py"
    assert trainer_digest("hospital_task:trainer", module) == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "hospital_task" not in sys.modules
    for name in ("no_such_module_anywhere:trainer", "no.such.package:trainer", "sys:trainer"):
        with pytest.raises(ConfigError, match="no source file"):
            trainer_digest(name, module)


def test_the_environment_comes_before_the_files_addresses(tmp_path: Path) -> None:
    given = {"FLEDGE_BROKER": "memory:", "FLEDGE_STORE": "", "HOME": "elsewhere"}
    config = read_config(written(tmp_path), given)
    assert config.broker == "memory:"
    assert config.store.startswith("s3s:")


def test_an_unknown_key_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(written(tmp_path, 'brokre = "memory:"\n' + GOOD), {})
    assert str(refused.value).endswith("worker.toml: brokre is unknown; did you mean 'broker'?")
    with pytest.raises(ConfigError, match="zzz is unknown; known: federation, site, broker, store"):
        read_config(written(tmp_path, "zzz = 1\n" + GOOD), {})


def test_a_wrong_value_is_named_but_never_repeated(tmp_path: Path) -> None:
    text = GOOD.replace(f'root = "{ROOT}"', 'root = "hunter2"')
    with pytest.raises(ConfigError, match="root") as refused:
        read_config(written(tmp_path, text), {})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", ["federation = ", "\xff"])
def test_a_file_that_is_not_toml_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML") as refused:
        read_config(path, {})
    assert str(path) in str(refused.value)


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the path right"):
        read_config(tmp_path / "nowhere.toml", {})


def test_passwords_are_never_shown(tmp_path: Path) -> None:
    config = read_config(written(tmp_path), {})
    assert "hunter2" not in f"{config!r} {config}"
    assert "heart" in repr(config)


def test_a_factory_is_found_beside_the_configuration_and_given_its_options(module: Path) -> None:
    assert call_factory("hospital_task:trainer", {"data": "x", "steps": 3}, module) == ("x", 3)


def test_what_cannot_train_is_no_trainer(module: Path) -> None:
    with pytest.raises(ConfigError, match="makes a tuple; return what has train and evaluate"):
        load_trainer("hospital_task:trainer", {"data": "x", "steps": 3}, module)


@pytest.mark.parametrize("value", ["1979-05-27", "{ a = 1 }", "[[1]]", "nan"])
def test_a_filter_takes_only_what_an_update_can_tell(tmp_path: Path, value: str) -> None:
    text = GOOD.replace("noise_multiplier = 0.1", f"noise_multiplier = {value}")
    with pytest.raises(ConfigError, match=r"filters\[gaussian\]\.noise_multiplier: write a text, a number"):
        read_config(written(tmp_path, text), {})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("no_such_module_anywhere:trainer", {}, "no_such_module_anywhere"),
        ("hospital_task:nothing", {}, "nothing"),
        ("hospital_task:trainer", {"date": 1}, "options \\['date'\\]"),
        ("hospital_task:broken", {}, "no GPU"),
        ("hospital_task:without_data", {}, "FileNotFoundError.*scan.npz.*\\[options\\]"),
    ],
)
def test_a_trainer_that_cannot_be_made_is_refused_with_the_reason(
    module: Path, name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_trainer(name, options, module)


@pytest.mark.parametrize("name", ["worker", "protocol", "random", "time"])
def test_a_file_that_a_module_in_use_hides_is_named(module: Path, name: str) -> None:
    importlib.import_module(name)
    (module / f"{name}.py").write_text("def trainer():\n    return 1\n")
    trainer = f"{name}:trainer"
    for look in (lambda: trainer_digest(trainer, module), lambda: load_trainer(trainer, {}, module)):
        with pytest.raises(ConfigError, match=rf"{name}\.py has the name of a module that is in use already"):
            look()


def test_sites_of_one_process_may_have_the_same_module(module: Path, tmp_path: Path) -> None:
    call_factory("hospital_task:trainer", {"data": "x", "steps": 3}, module)
    other = tmp_path / "other"
    other.mkdir()
    (other / "hospital_task.py").write_bytes((module / "hospital_task.py").read_bytes())
    assert call_factory("hospital_task:trainer", {"data": "x", "steps": 3}, other) == ("x", 3)


def test_a_script_without_a_guard_does_not_end_the_worker(module: Path) -> None:
    (module / "hospital_script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"ends the program when it is imported \(exit code 0\)"):
        load_trainer("hospital_script:trainer", {}, module)
