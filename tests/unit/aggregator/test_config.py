"""A run's settings: which way its metric is better, and how it ends."""

from __future__ import annotations

import pytest

from aggregator.config import DEFAULT_VERSIONS, RunConfig, StopConfig, ending, parse_run
from protocol.errors import ConfigError


def stop(text: str) -> StopConfig:
    return parse_run(f'name = "x"\n[stop]\n{text}'.encode()).stop


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ('metric = "val_loss"\ntarget_metric = 0.5', "min"),
        ('metric = "accuracy"', "max"),
        ('metric = "burden"\ndirection = "min"', "min"),
        ('metric = "loss"\ndirection = "max"', "max"),
        ("", "max"),
    ],
)
def test_a_metrics_direction_is_what_is_said_or_what_its_name_says(text: str, direction: str) -> None:
    assert stop(text).rules().direction == direction


def test_a_metric_whose_direction_nobody_knows_is_refused_with_what_to_write() -> None:
    with pytest.raises(
        ConfigError, match=r'"burden" is better .* direction = "max" .* direction = "min".* under \[stop\]'
    ):
        stop('metric = "burden"\npatience = 3')


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("", DEFAULT_VERSIONS),
        ('metric = "loss"', DEFAULT_VERSIONS),
        ("max_versions = 0", None),
        ("max_versions = 7", 7),
        ("max_wall_time = 9.0", None),
        ('metric = "loss"\npatience = 3', None),
    ],
)
def test_a_run_that_names_no_end_gets_one(text: str, most: int | None) -> None:
    config = ending(RunConfig(name="x", stop=stop(text)))
    assert config.stop.rules().max_versions == most
    assert ending(config) == config
