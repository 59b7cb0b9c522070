"""What a hospital is told of options that a run's trainer does not take."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigError
from worker.pipeline.code_loader import _check_options


def trainer(data: str) -> object:
    """A trainer's factory that needs to know where the data lie."""
    return data


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"was given no options at all.*: missing a required argument: 'data'; correct \[options\] in worker.toml"),
        ({"date": 1}, r"was given the options \['date'\].*; correct \[options\] in worker.toml"),
    ],
)
def test_options_that_do_not_fit_are_told_as_they_were_given(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _check_options("chest", trainer, options)
