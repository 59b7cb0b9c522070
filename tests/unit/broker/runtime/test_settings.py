"""Settings that are written wrong: the sentence says which key and what was expected, and never the value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from aggregator.config import AggregatorConfig, RunConfig
from broker.runtime.settings import TlsConfig, given_urls, parse_toml, read_toml
from fledge.operator.config import OperatorConfig
from protocol.errors import ConfigError
from worker.config import WorkerConfig
from worker.policy import SitePolicy

ROOT = "0" * 64
WORKER = f'federation = "f"\nbroker = "b"\nstore = "s"\nroot = "{ROOT}"\n'


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (WorkerConfig, 'trainr = "a:b"', "trainr is unknown; did you mean 'trainer'?"),
        (SitePolicy, 'hourz = "20:00-06:00"', "hourz is unknown; did you mean 'hours'?"),
        (RunConfig, 'name = "x"\n[stratgy]\nbuffer = 3', "stratgy is unknown; did you mean 'strategy'?"),
        (
            RunConfig,
            'name = "x"\n[stop]\nmax_versionz = 3',
            "stop.max_versionz is unknown; did you mean 'max_versions'?",
        ),
        (WorkerConfig, WORKER + '[tls]\nca = "x"\ncret = "y"', "tls.cret is unknown; did you mean 'cert'?"),
        (WorkerConfig, WORKER + "[runs.lungs]\noptionz = {}", "runs.lungs.optionz is unknown; did you mean 'options'?"),
        (TlsConfig, "zzz = 1", "zzz is unknown; known: ca, cert, key"),
        (OperatorConfig, 'federation = "f"\nbroker = "b"', "root is missing; write it as 64 hexadecimal digits"),
        (RunConfig, "min_sites = 2", "name is missing"),
    ],
)
def test_a_key_that_is_written_wrong_is_answered_with_the_one_that_was_meant(
    kind: type[BaseModel], text: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_toml(text.encode(), "f.toml", kind)
    assert str(refused.value) == f"f.toml: {says}"


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (SitePolicy, 'hours = "hunter2"', "hours: write it as 20:00-06:00"),
        (SitePolicy, 'code = ["hunter2"]', "code[1]: write it as 64 hexadecimal digits"),
        (SitePolicy, 'operators = ["hunter 2"]', "operators[1]: use letters, digits and . _ : + - only"),
        (
            SitePolicy,
            '[[filters]]\nname = "clip"\nnorm = "hunter2"',
            "filters[clip].norm: write a table of keys and values",
        ),
        (WorkerConfig, WORKER + 'trainer = "hunter2"', "trainer: write it as module:factory"),
        (WorkerConfig, WORKER + 'proxy = "hunter2"', "proxy: write it as http://host:port"),
        (WorkerConfig, WORKER + 'access = "hunter2"', "access: write 'credentials' or 'presigned'"),
        (WorkerConfig, WORKER + 'exclude = "hunter2"', "exclude: write a list: [a, b]"),
        (WorkerConfig, WORKER + 'spool_mb = "hunter2"', "spool_mb: write a whole number"),
        (WorkerConfig, WORKER + "heartbeat = 0.01", "heartbeat: write a number of at least 0.1"),
        (AggregatorConfig, WORKER.replace(ROOT, "hunter2"), "root: write it as 64 hexadecimal digits"),
        (RunConfig, 'name = "x"\ngrace = "hunter2"', "grace: write a number"),
        (RunConfig, 'name = "x"\nmax_wait = 0', "max_wait: write a number above 0"),
        (RunConfig, 'name = "x"\nrelease_decay = 2', "release_decay: write a number below 1"),
        (RunConfig, 'name = "x"\nevaluate = "hunter2"', "evaluate: write true or false"),
        (RunConfig, 'name = "x"\nstop = "hunter2"', "stop: write a table of keys and values"),
        (RunConfig, 'name = "x"\n[stop]\nmax_versions = 1.5', "stop.max_versions: write a whole number"),
        (
            RunConfig,
            'name = "x"\n[task]\na = { b = "hunter2" }',
            "task.a: write a text, a number, true or false, or a list of them",
        ),
        (
            WorkerConfig,
            WORKER + '[runs."two words"]\noptions = {}',
            "runs.two words: this name will not do; use letters, digits and . _ : + - only",
        ),
    ],
)
def test_a_wrong_value_is_answered_with_what_was_expected_and_not_repeated(
    kind: type[BaseModel], text: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_toml(text.encode(), "f.toml", kind)
    assert str(refused.value) == f"f.toml: {says}"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"name = ", "not valid TOML"),
        (b'name = "x"\nname = "y"', "not valid TOML"),
        (b"\xff", "not valid TOML: not text in UTF-8"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * (1024**2 + 1), "is it the right file"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_path(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=says) as refused:
        read_toml(path, RunConfig)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: .*is the path right"):
        read_toml(tmp_path / "nowhere.toml", RunConfig)


def test_what_is_given_besides_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "file"\ngrace = 3')
    found = read_toml(path, RunConfig, {"name": "given"})
    assert (found.name, found.grace) == ("given", 3.0)


def test_urls_of_the_environment_are_given_unless_they_are_empty() -> None:
    given = {"FLEDGE_BROKER": "memory:", "FLEDGE_STORE": "", "HOME": "elsewhere"}
    assert given_urls(given) == {"broker": "memory:"}


def test_how_a_field_says_it_is_written_is_something_it_takes() -> None:
    assert parse_toml(b'hours = "20:00-06:00"', "f.toml", SitePolicy).hours == "20:00-06:00"
    for key, value in (("trainer", "module:factory"), ("proxy", "http://host:port")):
        assert getattr(parse_toml(f'{WORKER}{key} = "{value}"'.encode(), "f.toml", WorkerConfig), key) == value
