"""Clara's federated configuration as settings: what has a meaning is taken over, everything else is told of by name."""

from __future__ import annotations

import contextlib
import re
import tomllib
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import RunConfig
from aggregator.strategy.strategies import strategy
from fledge.runs.from_mmar import run_config
from protocol.errors import ConfigError
from tests.support import mmars
from worker.mmar.entries import NoteKind
from worker.mmar.federated import Settings, patterns_of, settings


def told(found: Settings, kind: NoteKind) -> dict[str, str]:
    return {note.what: note.why for note in found.notes if note.kind is kind}


def test_what_3_1_says_becomes_a_run() -> None:
    found = settings(mmars.OLD_SERVER, mmars.OLD_CLIENT)
    run = RunConfig.model_validate({**found.run, "name": "covid"})
    assert (run.min_sites, run.grace, run.heartbeat, run.stop.max_versions) == (2, 10.0, 200.0, 200)
    assert run.task == {"local_epochs": 5}
    assert run.evaluate is True
    assert run.strategy.name == "fedavg"
    assert strategy(run.strategy.name, **run.strategy.parameters).synchronous


def test_what_4_0_says_becomes_a_run() -> None:
    found = settings(mmars.SERVER, mmars.CLIENT)
    run = RunConfig.model_validate({**found.run, "name": "spleen"})
    assert (run.min_sites, run.grace, run.stop.max_versions) == (3, 30.0, 60)
    assert run.heartbeat == RunConfig(name="spleen").heartbeat
    assert run.task == {"local_steps": 7}
    assert run.evaluate is True
    assert found.exclude == ("model.0.conv.unit0.adn.N.weight",)
    toml = tomllib.loads(found.worker_toml("spleen"))
    assert toml == {"exclude": list(found.exclude), "runs": {"spleen": {"options": {"dataset_dir": "/data"}}}}


def leaves(config: Any, key: str = "") -> set[str]:
    """Every key that holds a plain value, and every component's name, outside components."""
    if isinstance(config, list):
        return set().union(*(leaves(each, key) for each in config))
    if isinstance(config, dict):
        component = key not in ("", "servers", "client", "args") and ("name" in config or "path" in config)
        if component:
            return {str(config.get("name") or config.get("path")).rpartition(".")[2]}
        return set().union(*(leaves(value, name) for name, value in config.items() if name != "service"))
    return {key}


@pytest.mark.parametrize(
    ("server", "client"), [(mmars.OLD_SERVER, mmars.OLD_CLIENT), (mmars.SERVER, mmars.CLIENT)], ids=["3.1", "4.0"]
)
def test_nothing_is_dropped_in_silence(server: dict[str, Any], client: dict[str, Any]) -> None:
    found = settings(server, client)
    said = {word for note in found.notes for word in note.what.split()}
    used = {
        *("min_num_clients", "wait_after_min_clients", "heart_beat_timeout", "num_rounds", "num_rounds_per_valid"),
        *("local_epochs", "steps_aggregation", "exclude_vars", "cross_site_validate", "cross_validate"),
    }
    told_as_a_whole = {"UNet", "is_participating"}
    for side in (server, client):
        assert leaves(side) - used - said - told_as_a_whole == set()


def test_privacy_that_has_no_equal_is_a_thing_to_be_set() -> None:
    for server, client, name in (
        (mmars.OLD_SERVER, mmars.OLD_CLIENT, "client LaplacianProtocol"),
        (mmars.SERVER, mmars.CLIENT, "client PercentilePrivacy"),
    ):
        assert "a site's worker.toml names the filters" in told(settings(server, client), NoteKind.TO_SET)[name]
    weights = told(settings(mmars.OLD_SERVER, None), NoteKind.LEFT_OUT)["server aggregation_weights"]
    assert weights.startswith('{"site-a": 1.5, "site-b": 1}: updates are weighed by their examples')
    assert "server aggregation_weights" not in told(settings(mmars.SERVER, None), NoteKind.LEFT_OUT)


def test_parts_of_ones_own_are_named() -> None:
    client = {"client": {"privacy": {"path": "own.filters.RandomProtocol", "args": {"percentage": 5}}, "speed": 3}}
    found = settings(None, client)
    assert "Python packages" in told(found, NoteKind.TO_SET)["client RandomProtocol"]
    assert told(found, NoteKind.LEFT_OUT)["client speed"] == "means nothing here"


@pytest.mark.parametrize(
    ("server", "versions"),
    [
        ({"num_rounds": 200, "start_round": 0}, 200),
        ({"num_rounds": 200, "start_round": 1}, 200),
        ({"num_rounds": 200, "start_round": 150}, 51),
        ({"num_rounds": 2, "start_round": 3}, 1),
        ({"num_rounds": -1}, 0),
        ({}, None),
    ],
)
def test_rounds_are_counted_as_clara_counts_them(server: dict[str, Any], versions: int | None) -> None:
    assert settings({"servers": [server]}, None).run.get("stop", {}).get("max_versions") == versions


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"servers": [{"min_num_clients": "two"}]}, "min_num_clients is 'two'; it has to be a whole number"),
        ({"servers": [{"heart_beat_timeout": 10**400}]}, "heart_beat_timeout is 1000"),
        ({"servers": [{"wait_after_min_clients": -(10**400)}]}, "wait_after_min_clients is -1000"),
        ({"servers": [{"num_rounds": True}]}, "num_rounds is True"),
        ({"servers": {"name": "x"}}, "servers has to be a list"),
    ],
)
def test_a_wrong_value_is_named(server: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        settings(server, None)


@pytest.mark.parametrize(
    ("expression", "patterns"),
    [
        ("^conv1", ["conv1*"]),
        ("norm.*weight$", ["*norm*weight"]),
        (r"fc\.bias", ["*fc.bias*"]),
        ("bn|^head", ["*bn*", "head*"]),
        ("conv[0-9]", None),
        ("(a|b)", None),
        ("a+", None),
        ("a?", None),
    ],
)
def test_plain_expressions_become_patterns(expression: str, patterns: list[str] | None) -> None:
    assert patterns_of(expression) == patterns


def test_what_matches_nothing_is_nothing() -> None:
    for value in ("dummy", "", None, []):
        assert settings(None, {"client": {"exclude_vars": value}}).exclude == ()


WORDS = st.text("abn12_", min_size=1, max_size=4)


@given(
    st.lists(st.one_of(WORDS, st.just(".*"), st.just(r"\.")), min_size=1, max_size=4).map("".join),
    st.sampled_from(["", "^"]),
    st.sampled_from(["", "$"]),
    st.lists(WORDS, min_size=1, max_size=4).map(".".join),
)
def test_a_pattern_matches_what_its_expression_finds(inner: str, start: str, end: str, name: str) -> None:
    expression = f"{start}{inner}{end}"
    (pattern,) = patterns_of(expression) or ("",)
    assert fnmatchcase(name, pattern) == bool(re.search(expression, name))


@pytest.mark.parametrize("junk", [None, -3, 0.5, "x", [], [None], {}, {"name": "x"}], ids=repr)
def test_junk_anywhere_is_refused_in_our_words_or_harmless(junk: Any) -> None:
    for whole in (mmars.OLD_SERVER, mmars.OLD_CLIENT, mmars.SERVER, mmars.CLIENT):
        for changed in mmars.everywhere(whole, junk):
            for sides in ((changed, None), (None, changed)):
                with contextlib.suppress(ConfigError):
                    run_config(settings(*sides).run, "run")
