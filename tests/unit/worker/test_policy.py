from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigError, TrainingError, Unauthorized
from protocol.messages import Named
from worker.policy import OPEN, SitePolicy, read_policy


def policy(**keys: Any) -> SitePolicy:
    return SitePolicy.model_validate(keys)


def written(directory: Path, text: str) -> Path:
    path = directory / "policy.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def named(name: str, **parameters: Any) -> Named:
    return Named(name=name, parameters=parameters)


def test_without_a_file_everything_is_allowed(tmp_path: Path) -> None:
    found = read_policy(tmp_path / "policy.toml")
    assert found == OPEN
    found.may_order("anybody", "site.shutdown")
    found.check_code("ab" * 32)
    found.check_filters([named("unsafe-none")])
    found.check_metrics(["loss", "val.dice:liver", "f1+macro", "top-5"])
    assert found.opens_in(datetime(2026, 5, 4, 12, 0)) == 0


def test_figures_stay_unless_the_policy_lets_them_go_under_harmless_names() -> None:
    with pytest.raises(ConfigError, match="statistics = true"):
        OPEN.check_statistics([])
    policy(statistics=True, metrics=["loss"]).check_statistics(["background", "liver", "3"])
    for name in ("Doe Jane", "a/b", "scan.dcm", "0010,0010", "1.2.840.113619", ""):
        with pytest.raises(ConfigError, match="names of classes leave the site"):
            policy(statistics=True).check_statistics(["liver", name])


def test_a_policy_that_has_to_be_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such policy"):
        read_policy(tmp_path / "policy.toml", needed=True)


def test_a_policy_is_read_with_everything_in_it(tmp_path: Path) -> None:
    text = """\
operators = ["anna"]
code = ["%s"]
metrics = ["loss", "val.*"]
hours = "20:00-06:00"
bandwidth_kbit = 2000
ask_first = true

[[filters]]
name = "clip"
norm = { at_most = 5.0 }

[[filters]]
name = "gaussian"
noise_multiplier = { at_least = 0.1 }
"""
    found = read_policy(written(tmp_path, text % ("ab" * 32)))
    assert (found.operators, found.hours, found.bandwidth_kbit, found.ask_first) == (
        ("anna",),
        "20:00-06:00",
        2000,
        True,
    )
    assert [str(each) for each in found.filters] == [
        "'clip' with norm at most 5",
        "'gaussian' with noise_multiplier at least 0.1",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("operator = []", "operator is unknown; did you mean 'operators'"),
        ('hourz = "20:00-06:00"', "hourz is unknown; did you mean 'hours'"),
        ('hours = "20-6"', "hours: write it as 20:00-06:00$"),
        ('hours = "20:00-24:00"', "hours"),
        ('code = ["abc"]', r"code\[1\]: write it as 64 hexadecimal digits$"),
        ("bandwidth_kbit = 0", "bandwidth_kbit: write a number of at least 8$"),
        ('[[filters]]\nname = "clip"\nnorm = 5.0', r"filters\[clip\].norm: write a table of keys and values$"),
        ('[[filters]]\nname = "clip"\nnorm = { most = 5.0 }', r"clip\].norm.most is unknown; did you mean 'at_most'"),
        ("operators = ", "not valid TOML"),
        ("#" + 70_000 * "x", "longer than"),
    ],
)
def test_a_slip_in_a_policy_is_refused_since_it_might_allow_what_it_should_not(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        read_policy(written(tmp_path, text))
    assert str(tmp_path) in str(refused.value)


def test_a_policy_that_anybody_can_change_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "ask_first = true")
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="chmod o-w"):
        read_policy(path)


def test_a_policy_that_cannot_be_read_lets_no_worker_start(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").mkdir()
    with pytest.raises(ConfigError, match="does not start without its policy"):
        read_policy(tmp_path / "policy.toml")


def test_only_operators_that_the_site_names_may_order_anything_here() -> None:
    policy(operators=["anna"]).may_order("anna", "site.drain")
    with pytest.raises(Unauthorized, match=r"does not let bert order site.drain; .*policy.toml"):
        policy(operators=["anna"]).may_order("bert", "site.drain")
    with pytest.raises(Unauthorized):
        policy(operators=[]).may_order("anna", "site.drain")


def test_only_code_that_was_looked_at_runs() -> None:
    policy(code=["ab" * 32]).check_code("ab" * 32)
    with pytest.raises(ConfigError, match=r"cdcd.*have the code looked at"):
        policy(code=["ab" * 32]).check_code("cd" * 32)


NOISE = {"name": "gaussian", "noise_multiplier": {"at_least": 0.5}}
CLIP = {"name": "clip", "norm": {"at_least": 0.1, "at_most": 5.0}}


@pytest.mark.parametrize(
    ("chain", "missing"),
    [
        ([named("clip", norm=5.0), named("gaussian", noise_multiplier=0.5)], ""),
        ([named("clip", norm=1), named("gaussian", noise_multiplier=2)], ""),
        ([named("clip", norm=5.1), named("gaussian", noise_multiplier=0.5)], "'clip' with norm at least 0.1 and at"),
        ([named("clip", norm=5.0), named("gaussian", noise_multiplier=0.4)], "'gaussian'"),
        ([named("clip", norm=5.0)], "'gaussian'"),
        ([named("clip"), named("gaussian", noise_multiplier=0.5)], "'clip'"),
        ([named("clip", norm="5"), named("gaussian", noise_multiplier=0.5)], "'clip'"),
        ([named("clip", norm=True), named("gaussian", noise_multiplier=0.5)], "'clip'"),
        ([named("unsafe-none")], "'clip'"),
    ],
)
def test_compulsory_filters_have_to_be_in_the_chain_and_strong_enough(chain: list[Named], missing: str) -> None:
    demanding = policy(filters=[CLIP, NOISE])
    if not missing:
        demanding.check_filters(chain)
        return
    with pytest.raises(ConfigError, match=missing):
        demanding.check_filters(chain)


@pytest.mark.parametrize("value", ["/data/mask", "C:\\mask", "mask.nii.gz", "mask.NPZ"])
def test_a_filters_parameter_that_names_a_file_is_refused_because_updates_tell_it(value: str) -> None:
    with pytest.raises(ConfigError, match="mask looks like a file's name") as refused:
        OPEN.check_filters([named("own", mask=value)])
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "scan-0001.nii.gz",
        "Mueller.DCM",
        "loss.case7.png:max",
        "table.csv",
        "0010.0010",
        "0018-9087",
        "1.2.840.113619.2.55",
        "a/b",
        "a\\b",
        "",
        "x" * 65,
    ],
)
def test_metrics_named_after_files_paths_and_identifiers_do_not_leave_the_site(name: str) -> None:
    with pytest.raises(TrainingError, match="metric"):
        OPEN.check_metrics(["loss", name])


def test_a_site_can_name_the_metrics_that_may_leave_it() -> None:
    strict = policy(metrics=["loss", "val.*"])
    strict.check_metrics(["loss", "val.dice"])
    with pytest.raises(TrainingError, match="'mueller' may not leave this site"):
        strict.check_metrics(["loss", "mueller"])


@pytest.mark.parametrize(
    ("hours", "clock", "seconds"),
    [
        ("20:00-06:00", (20, 0, 0), 0),
        ("20:00-06:00", (23, 59, 59), 0),
        ("20:00-06:00", (0, 0, 0), 0),
        ("20:00-06:00", (5, 59, 59), 0),
        ("20:00-06:00", (6, 0, 0), 14 * 3600),
        ("20:00-06:00", (19, 59, 59), 1),
        ("08:30-17:00", (8, 29, 30), 30),
        ("08:30-17:00", (8, 30, 0), 0),
        ("08:30-17:00", (17, 0, 0), 15.5 * 3600),
        ("00:00-00:00", (13, 0, 0), 0),
    ],
)
def test_trainings_begin_in_the_sites_hours_also_over_midnight(
    hours: str, clock: tuple[int, int, int], seconds: float
) -> None:
    assert policy(hours=hours).opens_in(datetime(2026, 5, 4, *clock)) == seconds
